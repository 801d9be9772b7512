// The page: it finds its data, draws the frame, and shows one screen at a time.

import { Component, render, type ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { readSource, type Example } from "./source";
import { EditBar } from "./editbar";
import { followEdits } from "./edits";
import { App, AppContext, useApp } from "./state";
import { OpenReading, ReadingList } from "./readings";
import { SCREENS } from "./screens";
import style from "./style.css";
import { quoted } from "./text";
import { TokenStrip } from "./tokens";
import { traceFrom } from "./trace";

function Header() {
  const app = useApp();
  const { model, made, tokens, versions } = app.trace.value.header;
  const { sizes } = model;
  const next = { auto: "light", light: "dark", dark: "auto" }[app.theme.value] ?? "auto";
  return (
    <header class="top-bar">
      <div class="mark">
        <span class="name">pellucid</span>
        <span class="model">
          <b>{model.name}</b> {model.family} · {sizes.layer} layers × {sizes.head} heads · {tokens.length === 1 ? "1 token" : `${tokens.length} tokens`}
          <span class="more-wide">
            {" "}
            · {model.numerics} {model.dtype} · pellucid {versions.pellucid} · {made}
          </span>
        </span>
      </div>
      <button type="button" class="quiet" onClick={() => (app.theme.value = next)} aria-label={`Theme: ${app.theme.value}. Switch to ${next}`}>
        {{ auto: "◐ Auto", light: "○ Light", dark: "● Dark" }[app.theme.value] ?? "◐ Auto"}
      </button>
    </header>
  );
}

/** Another text: one that the page brings along, or with the server any. */
function Prompts() {
  const app = useApp();
  const { text } = app.trace.value.header;
  const current = app.examples.find((one) => one.text === text);
  // With a server it is run there, so that what is asked of the server later is about what is shown.
  const opened = (example: Example) => (app.server ? app.server.trace("/api/run", { text: example.text }) : traceFrom(example["trace"]!));
  const choose = (example: Example) => app.attempt("Opening the example", async () => app.show(await opened(example)));
  const run = (form: HTMLFormElement) => {
    const wanted = String(new FormData(form).get("text") ?? "");
    const server = app.server!;
    void app.attempt("Running the model", async () => {
      app.show(await server.trace("/api/run", { text: wanted }));
      // The field is drawn anew; from the tokens the keys that change something work at once.
      requestAnimationFrame(() => app.root.querySelector<HTMLElement>(".chosen")!.focus());
    });
  };
  if (!app.server && !app.examples.length) return null;
  return (
    <div class="prompts">
      {app.server && (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            run(event.currentTarget);
          }}
        >
          <label class="sr" for="pellucid-text">
            A text of your own
          </label>
          <input id="pellucid-text" name="text" key={text} defaultValue={text} autocomplete="off" spellcheck={false} />
          <button type="submit" class="primary">
            Run
          </button>
        </form>
      )}
      {app.examples.length > 0 && (
        <label class="examples">
          Start from{" "}
          <select
            value={current?.id ?? ""}
            onChange={(event) => {
              const found = app.examples.find((one) => one.id === event.currentTarget.value);
              if (found) void choose(found);
            }}
          >
            {!current && <option value="">this text</option>}
            {app.examples.map((one) => (
              <option value={one.id}>{one.text}</option>
            ))}
          </select>
        </label>
      )}
      {current && <p class="look-for">{current.look_for}</p>}
    </div>
  );
}

function Tabs() {
  const app = useApp();
  const at = Math.max(0, SCREENS.findIndex((screen) => screen.id === app.screen.value));
  const go = (to: number, list: Element) => {
    const index = (to + SCREENS.length) % SCREENS.length;
    app.screen.value = SCREENS[index].id;
    const tab = list.querySelectorAll<HTMLElement>("[role=tab]")[index];
    tab.focus();
  };
  const list = useRef<HTMLDivElement>(null);
  useEffect(() => {
    // On narrow screens the tabs scroll sideways; the chosen one comes into view without moving the page.
    const box = list.current!;
    const tab = box.querySelectorAll<HTMLElement>("[role=tab]")[at];
    box.scrollLeft = tab.offsetLeft - box.offsetLeft - (box.clientWidth - tab.offsetWidth) / 2;
  }, [at]);
  return (
    <div
      class="tabs"
      ref={list}
      role="tablist"
      aria-label="Questions"
      aria-orientation="vertical"
      onKeyDown={(event) => {
        const to = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: SCREENS.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        go(to, event.currentTarget);
      }}
    >
      {SCREENS.map((screen, index) => (
        <button
          type="button"
          role="tab"
          key={screen.id}
          id={`pellucid-tab-${screen.id}`}
          aria-selected={index === at}
          aria-controls="pellucid-panel"
          tabIndex={index === at ? 0 : -1}
          onClick={() => (app.screen.value = screen.id)}
        >
          <span class="question">{screen.question}</span>
          <span class="short">{screen.name}</span>
        </button>
      ))}
    </div>
  );
}

function Status() {
  const app = useApp();
  useEffect(() => {
    if (!app.notice.value) return;
    const waiting = setTimeout(() => (app.notice.value = ""), app.notice.value.length > 80 ? 20_000 : 3000);
    return () => clearTimeout(waiting);
  }, [app.notice.value]);
  return (
    <>
      <div class="sr" aria-live="polite">
        {app.said}
      </div>
      <div class="notice" role="status">
        {app.busy.value ? <span>{app.busy.value} …</span> : app.notice.value ? <span>{app.notice.value}</span> : null}
      </div>
      <div role="alert">
        {app.fault.value && (
          <p class="fault">
            <b>{app.fault.value.message}</b> {app.fault.value.remedy}{" "}
            <button type="button" class="quiet" onClick={() => (app.fault.value = null)}>
              Close
            </button>
          </p>
        )}
      </div>
    </>
  );
}

/** What can be shown in spite of a part that cannot. */
class Guard extends Component<{ children: ComponentChildren }, { said?: string }> {
  componentDidCatch(fault: unknown): void {
    this.setState({ said: String(fault) });
  }
  render() {
    return this.state.said ? <p class="fault">This screen cannot be shown, and the others can: its part of the page is not what it should be ({this.state.said}).</p> : this.props.children;
  }
}

function Page() {
  const app = useApp();
  const screen = SCREENS.find((one) => one.id === app.screen.value) ?? SCREENS[0];
  const { target } = app.trace.value.header;
  return (
    <div class="view">
      <Header />
      <div class="body">
        <nav aria-label="Screens">
          <Tabs />
          <ReadingList />
        </nav>
        <main>
          <Prompts />
          <div>
            <TokenStrip />
            <Status />
          </div>
          <OpenReading />
          <EditBar />
          <div role="tabpanel" id="pellucid-panel" aria-labelledby={`pellucid-tab-${screen.id}`} class="screen">
            <h1 tabIndex={-1}>{screen.question}</h1>
            <p class="look">{screen.look}</p>
            <Guard key={screen.id}>
              <screen.view />
            </Guard>
          </div>
          <footer>
            Followed token: {quoted(target.text)}, {target.why}. Everything on this page comes from this file{app.server ? " and from pellucid on this machine" : ""}; nothing is sent anywhere.
          </footer>
        </main>
      </div>
    </div>
  );
}

function Themed() {
  const app = useApp();
  useEffect(() => {
    app.root.dataset.theme = app.dark.value ? "dark" : "light";
  }, [app.dark.value]);
  return <Page />;
}

function adopt(scope: Document | ShadowRoot): void {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(style);
  scope.adoptedStyleSheets = [...scope.adoptedStyleSheets, sheet];
}

function fail(root: HTMLElement, fault: unknown): void {
  const said = fault instanceof Error ? fault.message : String(fault);
  root.classList.add("pellucid");
  render(<p class="fault">This page cannot be shown: {said}. Reload it, or make it again.</p>, root);
}

/** Show what the page's script elements hold in an element. */
async function mount(root: HTMLElement): Promise<void> {
  const scope = root.getRootNode() as Document | ShadowRoot;
  adopt(scope);
  try {
    const source = await readSource(scope);
    if (!source.trace && source.server) source.trace = await source.server.trace("/api/examples/" + encodeURIComponent(source.examples[0]?.id ?? ""));
    if (!source.trace) throw new Error("it holds no trace");
    const app = new App({ ...source, trace: source.trace }, root, scope === document);
    app.start();
    followEdits(app, scope === document ? document : root);
    root.classList.add("pellucid");
    root.replaceChildren();
    render(
      <AppContext.Provider value={app}>
        <Themed />
      </AppContext.Provider>,
      root,
    );
  } catch (fault) {
    fail(root, fault);
  }
}

declare global {
  interface Window {
    pellucid: { mount: typeof mount };
  }
}

window.pellucid = { mount };
const here = document.getElementById("pellucid-viewer");
if (here) void mount(here);
