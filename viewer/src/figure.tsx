// A figure: a canvas that is one tab stop, whose cells are walked by arrows and read aloud, that can be seen as a
// table, and that can be taken away in every form.

import { computed, signal, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useId, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { DARK, LIGHT, type Palette } from "./colors";
import { upTo } from "./lists";
import { type App, useApp } from "./state";
import { CanvasSurface, type Surface } from "./surface";
import { TableView, TakeAway, tableOfBoth, type Sheet, type Table } from "./take";
import { SPACE, visible } from "./text";

/** The cells of a drawing, for the pointer, the keyboard and the screen reader alike. */
export type Grid = {
  rows: number;
  columns: number;
  box(row: number, column: number): [number, number, number, number];
  find(x: number, y: number): [number, number] | null;
  /** What a cell says: "query ‘ sat’ → key ‘ cat’, 0.41". */
  read(row: number, column: number): string;
  /** False for cells that are not there, such as keys after the query. */
  has?(row: number, column: number): boolean;
  /** Enter or a click. */
  choose?(row: number, column: number): void;
  /** The pointer or the cursor is there, or (null) has left. */
  hover?(where: [number, number] | null): void;
  /** Where the cursor starts. */
  start?(): [number, number];
};

export type Drawing = {
  width: number;
  height: number;
  /** Pixels at the left, with the names of rows or an axis, that stay in view where the figure scrolls. */
  stays?: number;
  draw(surface: Surface): void;
  /** What changes with the pointer; drawn above, so that hovering costs little. */
  over?(surface: Surface): void;
  grid?: Grid;
  /** The wheel and dragging, for figures that zoom; true if it was used. */
  wheel?(x: number, y: number, by: number): boolean;
  drag?(dx: number, dy: number): void;
  key?(event: KeyboardEvent): boolean;
  /** The cursor went to a cell by keyboard; a figure that zooms follows it. */
  moved?(row: number, column: number): void;
  /** The same figure of this run less the run before, of which `before` is the drawing. */
  differ?(before: Drawing): Drawing;
};

export type FigureProps = {
  title: string;
  /** File name without its ending. */
  name: string;
  /** What to see, in a sentence. */
  caption?: ComponentChildren;
  /** Narrower than this, the figure scrolls within its frame. */
  narrowest?: number;
  /** Reads the signals that it depends on; called again when they change. */
  build: (width: number, palette: Palette) => Drawing;
  table: () => Table;
  /** Lines of Python that go after those that make the run. */
  python?: () => string;
  /** A command that makes the figure's numbers, null if none does; the page's own if it is left out. */
  shell?: () => string | null;
  /** True for a figure that shows both runs itself: it is the same whichever is shown. */
  ofBoth?: boolean;
  controls?: ComponentChildren;
  children?: ComponentChildren;
};

/** The figure of the run that is shown, or of the difference of two. */
function drawn(app: App, { build, narrowest = 0, ofBoth }: FigureProps, width: number): Drawing {
  const make = () => build(Math.max(width, narrowest), palettes(app));
  const pair = app.pair.value;
  if (!pair || ofBoth) return make();
  const edited = app.of(pair.edited, make);
  return edited.differ?.(app.of(pair.base, make)) ?? edited;
}

/** The numbers of the run that is shown, or of both and their difference. */
function tableOf(app: App, { table, ofBoth }: FigureProps): Table {
  const pair = app.pair.value;
  return pair && !ofBoth ? tableOfBoth(app.of(pair.base, table), app.of(pair.edited, table)) : table();
}

const palettes = (app: App): Palette => (app.dark.value ? DARK : LIGHT);

export function Figure(props: FigureProps) {
  const app = useApp();
  const frame = useRef<HTMLDivElement>(null);
  const base = useRef<HTMLCanvasElement>(null);
  const top = useRef<HTMLCanvasElement>(null);
  const id = useId();
  const width = useSignal(0);
  const given = useMemo(() => signal(props), []);
  const asTable = useSignal(false);
  const cursor = useSignal<[number, number] | null>(null);
  const scrolled = useSignal(0);
  const readout = useSignal("");
  useLayoutEffect(() => {
    given.value = props;
  });
  useEffect(() => {
    const element = frame.current!;
    const measure = () => (width.value = Math.floor(element.clientWidth));
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  const drawing = useMemo(
    () =>
      computed(() => {
        return width.value ? drawn(app, given.value, width.value) : null;
      }),
    [],
  );

  const draw = (canvas: HTMLCanvasElement | null, size: Drawing, paint: (surface: Surface) => void) => {
    if (!canvas) return;
    const [w, h] = [Math.ceil(size.width), Math.ceil(size.height)];
    // Browsers refuse a canvas that is wider than about 16,000 pixels.
    const times = Math.min(3, window.devicePixelRatio || 1, 16_000 / Math.max(w, h));
    if (canvas.width !== w * times || canvas.height !== h * times) {
      canvas.width = w * times;
      canvas.height = h * times;
      canvas.style.width = `${w}px`;
      canvas.style.height = `${h}px`;
    }
    const context = canvas.getContext("2d")!;
    context.setTransform(times, 0, 0, times, 0, 0);
    context.clearRect(0, 0, w, h);
    paint(new CanvasSurface(context));
  };
  useSignalEffect(() => {
    const now = drawing.value;
    if (now && !asTable.value) draw(base.current, now, (surface) => now.draw(surface));
  });
  useSignalEffect(() => {
    const now = drawing.value;
    if (!now || asTable.value) return;
    const palette = palettes(app);
    draw(top.current, now, (surface) => {
      now.over?.(surface);
      const at = cursor.value;
      if (!at || !now.grid || at[0] >= now.grid.rows || at[1] >= now.grid.columns) return;
      const [x, y, w, h] = now.grid.box(...at);
      surface.rect(x - 1, y - 1, w + 2, h + 2, { stroke: palette.panel, width: 4, radius: 2 });
      surface.rect(x - 1, y - 1, w + 2, h + 2, { stroke: palette.accent, width: 2, radius: 2 });
    });
    if (!now.stays || !scrolled.value) return;
    const context = top.current!.getContext("2d")!;
    const surface = new CanvasSurface(context);
    surface.clip(scrolled.value, 0, now.stays, now.height, () => {
      surface.rect(scrolled.value, 0, now.stays!, now.height, { fill: palette.panel });
      context.translate(scrolled.value, 0);
      context.drawImage(base.current!, 0, 0, now.width, now.height);
      now.over?.(surface);
    });
  });
  useSignalEffect(() => {
    // What is chosen comes into view where the figure is wider than the screen.
    const grid = drawing.value?.grid;
    if (grid?.start && grid.rows && grid.columns) reveal(grid.box(...grid.start()));
  });
  const reveal = ([x, , w]: number[]) => {
    const scroller = frame.current!;
    const left = drawing.peek()?.stays ?? 0;
    if (x < scroller.scrollLeft + left || x + w > scroller.scrollLeft + scroller.clientWidth) scroller.scrollLeft = x - (scroller.clientWidth + left) / 2;
  };

  const place = ({ offsetX, offsetY }: { offsetX: number; offsetY: number }) => {
    const now = drawing.value;
    const found = scrolled.value && offsetX < scrolled.value + (now?.stays ?? 0) ? null : now?.grid?.find(offsetX, offsetY);
    return found && now!.grid!.has?.(...found) !== false ? found : null;
  };
  const dragging = useRef<[number, number] | null>(null);
  const moved = useRef(false);

  const onPointerMove = (event: PointerEvent) => {
    const now = drawing.value;
    if (!now) return;
    const held = dragging.current;
    if (held && now.drag) {
      const [dx, dy] = [event.clientX - held[0], event.clientY - held[1]];
      if (Math.abs(dx) + Math.abs(dy) > 2) moved.current = true;
      now.drag(dx, dy);
      dragging.current = [event.clientX, event.clientY];
      return;
    }
    const found = place(event);
    now.grid?.hover?.(found);
    readout.value = found ? now.grid!.read(...found) : "";
  };
  const onPointerLeave = () => {
    drawing.value?.grid?.hover?.(null);
    readout.value = "";
  };
  const onPointerDown = (event: PointerEvent) => {
    moved.current = false;
    if (drawing.value?.drag) dragging.current = [event.clientX, event.clientY];
  };
  const onPointerUp = () => (dragging.current = null);
  const onClick = (event: MouseEvent) => {
    const found = moved.current ? null : place(event);
    if (found) {
      cursor.value = null;
      drawing.value?.grid?.choose?.(...found);
    }
  };
  const wheel = (event: WheelEvent) => {
    if (drawing.value?.wheel?.(event.offsetX, event.offsetY, event.deltaY)) event.preventDefault();
  };
  useEffect(() => {
    // Preact's wheel listeners are passive in some browsers, and this one has to keep the page from scrolling.
    const canvas = base.current;
    canvas?.addEventListener("wheel", wheel, { passive: false });
    return () => canvas?.removeEventListener("wheel", wheel);
  }, [asTable.value]);

  const go = (row: number, column: number) => {
    const grid = drawing.value!.grid!;
    cursor.value = [row, column];
    drawing.value!.moved?.(row, column);
    grid.hover?.([row, column]);
    readout.value = grid.read(row, column);
    app.said.value = readout.value;
    const box = drawing.value!.grid!.box(row, column);
    const [, y, , h] = box;
    reveal(box);
    const edge = base.current!.getBoundingClientRect().top;
    if (edge + y < 0 || edge + y + h > innerHeight) scrollBy({ top: edge + y - innerHeight / 2 });
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const now = drawing.value;
    if (!now || event.ctrlKey || event.metaKey || event.altKey) return;
    if (now.key?.(event)) return event.preventDefault();
    const grid = now.grid;
    if (!grid?.rows || !grid.columns) return;
    const step = event.shiftKey ? 8 : 1;
    const by: Record<string, [number, number]> = {
      ArrowUp: [-step, 0],
      ArrowDown: [step, 0],
      ArrowLeft: [0, -step],
      ArrowRight: [0, step],
      Home: [0, -Infinity],
      End: [0, Infinity],
      PageUp: [-Infinity, 0],
      PageDown: [Infinity, 0],
    };
    const at = cursor.value ?? grid.start?.() ?? [0, 0];
    if (by[event.key]) {
      event.preventDefault();
      if (!cursor.value) return go(...at);
      const within = (value: number, size: number) => Math.max(0, Math.min(size - 1, value));
      const [down, across] = by[event.key];
      const [row, column] = [within(at[0] + down, grid.rows), within(at[1] + across, grid.columns)];
      // Where no cell is, the nearest one of that row, and to the side only one that lies farther on.
      const there = upTo(grid.columns).filter((one) => grid.has?.(row, one) !== false && (!across || (one - at[1]) * across > 0));
      if (there.length) go(row, there.reduce((best, one) => (Math.abs(one - column) < Math.abs(best - column) ? one : best)));
    } else if ((event.key === "Enter" || event.key === " ") && cursor.value) {
      event.preventDefault();
      grid.choose?.(...at);
    } else if (event.key === "Escape" && cursor.value) {
      cursor.value = null;
      grid.hover?.(null);
    }
  };
  const onBlur = () => {
    if (!cursor.value) return;
    cursor.value = null;
    drawing.value?.grid?.hover?.(null);
  };

  const sheet = (): Sheet => {
    const now = drawing.value ?? drawn(app, props, 720);
    const { model, versions, text } = app.trace.value.header;
    const words = visible(text.length > 60 ? text.slice(0, 60) + "…" : text).replaceAll(SPACE, " ");
    return {
      title: app.pair.value && !props.ofBoth ? `${props.title}: difference` : props.title,
      source: `“${words}” · ${model.name}, ${model.fingerprint.slice(0, 15)} · pellucid ${versions.pellucid}`,
      width: now.width,
      height: now.height,
      palette: palettes(app),
      draw: (surface) => {
        now.draw(surface);
        now.over?.(surface);
      },
    };
  };

  const hasGrid = useComputed(() => Boolean(drawing.value?.grid));
  return (
    <section class="figure" aria-labelledby={`${id}-title`}>
      <header class="figure-head">
        <h2 id={`${id}-title`}>{props.title}</h2>
        <div class="figure-tools">
          <button type="button" class="quiet" aria-pressed={asTable.value} onClick={() => (asTable.value = !asTable.value)}>
            Table
          </button>
          <TakeAway {...props} table={() => tableOf(app, props)} sheet={sheet} />
        </div>
      </header>
      {props.caption && <p class="caption">{props.caption}</p>}
      {app.pair.value && !props.ofBoth && drawing.value && !drawing.value.differ && <p class="caption">Drawn of the edited run; the table has base, edited and difference.</p>}
      {props.controls && <div class="controls">{props.controls}</div>}
      <div class={asTable.value ? "figure-frame hidden" : "figure-frame"} ref={frame} onScroll={() => (scrolled.value = frame.current!.scrollLeft)}>
        <div class="stack">
          <canvas
            ref={base}
            tabIndex={0}
            role="application"
            aria-roledescription="figure"
            aria-label={`${props.title}. ${hasGrid.value ? "Arrow keys move from cell to cell, Enter selects." : ""} The same numbers are under “Table”.`}
            onPointerMove={onPointerMove}
            onPointerLeave={onPointerLeave}
            onPointerDown={onPointerDown}
            onPointerUp={onPointerUp}
            onClick={onClick}
            onKeyDown={onKeyDown}
            onBlur={onBlur}
          />
          <canvas ref={top} class="top" aria-hidden="true" />
        </div>
      </div>
      {asTable.value && <TableView table={tableOf(app, props)} title={props.title} />}
      <p class="readout" aria-hidden="true">
        {readout}
      </p>
      {props.children}
    </section>
  );
}
