// The text, token by token: one tab stop, arrows move, and what is chosen lights up in every panel.

import { useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { useApp, type App } from "./state";
import { visible } from "./text";

/** A piece with its spaces visible but quiet. */
export function Piece({ text }: { text: string }) {
  const shown = visible(text);
  const space = shown.match(/^[␣⏎⇥]+/)?.[0] ?? "";
  return (
    <bdi class="piece">
      {space && <span class="space">{space}</span>}
      {shown.slice(space.length)}
    </bdi>
  );
}

/** What figures with a column for each token share. */
export const byToken = (app: App) => {
  const { tokens } = app.trace.value.header;
  return {
    columns: tokens.length,
    columnLabels: tokens.map((token) => visible(token.text)),
    hover: (where: [number, number] | null) => (app.hover.value = where ? { query: where[1] } : {}),
    choose: (_: number, pos: number) => (app.query.value = pos),
    lit: () => ({ row: -1, column: app.atQuery.value }),
  };
};

/** The least width of a figure with a column for each token. */
export const roomFor = (count: number, each: number, thin: number): number => count * (count <= 64 ? each : thin) + 100;

/** The tokens of the run; choosing one makes it the query. */
export function TokenStrip() {
  const app = useApp();
  const list = useRef<HTMLDivElement>(null);
  const focus = useSignal(-1);
  const { tokens } = app.trace.value.header;
  const chosen = app.query.value < 0 ? tokens.length - 1 : Math.min(app.query.value, tokens.length - 1);
  useSignalEffect(() => {
    // Classes are set by hand: drawing a thousand tokens anew for each move of the pointer would be slow.
    const { query, key } = app.hover.value;
    for (const [name, at] of [["at-query", query], ["at-key", key]] as const) {
      list.current?.querySelector(`.${name}`)?.classList.remove(name);
      if (at !== undefined) list.current?.children[at]?.classList.add(name);
    }
  });
  useEffect(() => {
    // Of many tokens the chosen one is in sight, without moving the page.
    const box = list.current!;
    box.scrollTop = (box.children[chosen] as HTMLElement).offsetTop - box.offsetTop - box.clientHeight / 2;
  }, [chosen, tokens]);
  const move = (event: KeyboardEvent) => {
    const at = focus.value < 0 ? chosen : focus.value;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    focus.value = Math.max(0, Math.min(tokens.length - 1, to));
    app.query.value = focus.value;
    list.current?.querySelectorAll<HTMLElement>("[role=option]")[focus.value]?.focus();
  };
  return (
    <div class="tokens" role="listbox" aria-label="Tokens of the text" aria-orientation="horizontal" ref={list} onKeyDown={move}>
      {tokens.map((token, at) => (
        <span
          role="option"
          key={at}
          tabIndex={at === chosen ? 0 : -1}
          aria-selected={at === chosen}
          class={`token${at === chosen ? " chosen" : ""}`}
          title={`position ${at}, id ${token.id}`}
          onClick={() => (app.query.value = at)}
          onFocus={() => (focus.value = at)}
          onPointerEnter={() => (app.hover.value = { ...app.hover.value, query: at })}
          onPointerLeave={() => (app.hover.value = {})}
        >
          <Piece text={token.text} />
        </span>
      ))}
    </div>
  );
}
