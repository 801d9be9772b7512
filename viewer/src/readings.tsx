// Short pages for someone who meets a transformer for the first time, beside whatever screen is shown.

import { useEffect, useRef } from "preact/hooks";
import { Note } from "./inputs";
import { useApp } from "./state";

/** The list of readings; nothing where the page brings none. */
export function ReadingList() {
  const app = useApp();
  if (!app.readings.length) return null;
  return (
    <div class="reading-list">
      <Note>Readings</Note>
      {app.readings.map(({ slug, title }) => (
        <button type="button" key={slug} onClick={() => app.read(slug)}>
          {title}
        </button>
      ))}
    </div>
  );
}

/** The reading that is open. Its HTML is written by the package itself, never by a model or a text. */
export function OpenReading() {
  const app = useApp();
  const box = useRef<HTMLElement>(null);
  const found = app.readings.find((one) => one.slug === app.reading.value);
  useEffect(() => {
    if (found) box.current?.focus();
  }, [found?.slug]);
  if (!found) return null;
  const follow = (event: MouseEvent) => {
    const link = (event.target as HTMLElement).closest("a")?.dataset;
    if (!link) return;
    event.preventDefault();
    const { ["reading"]: reading, ["screen"]: screen } = link;
    if (reading) app.read(reading);
    else {
      app.screen.value = screen!;
      requestAnimationFrame(() => app.root.querySelector("h1")!.focus());
    }
  };
  return (
    <section class="card reading" aria-label={found.title} tabIndex={-1} ref={box}>
      <button type="button" class="quiet" onClick={() => app.read("")}>
        Close
      </button>
      <article onClick={follow} dangerouslySetInnerHTML={{ __html: found.html }} />
    </section>
  );
}
