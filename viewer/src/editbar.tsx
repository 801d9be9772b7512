// Beside every screen while a run is edited: which run is drawn, what was changed, and how far that went.

import { Note, Plain } from "./inputs";
import { editsOf, HOWS, nameOf, ranOf, remove, undo } from "./edits";
import { effectOf } from "./effects";
import { useApp } from "./state";
import { number, quoted } from "./text";

const SIDES = ["base", "edited", "difference"];

export function EditBar() {
  const app = useApp();
  const base = app.base.value;
  const { edits: said } = app.trace.value.header;
  if (!base) {
    if (!said.length) return null;
    return <Note>This run was edited: {said.map((edit) => `${edit.name}${edit.heads ? ` heads ${String(edit.heads)}` : ""} ${edit.how}`).join("; ")}.</Note>;
  }
  const edited = app.edited.value;
  const { kl, tokens, logit_difference: difference } = effectOf(base, edited);
  const edits = app.server ? editsOf(app.edits.value) : [];
  const control = ranOf(app).effects.value?.control;
  const other = control?.head !== undefined ? `another head of the layer, ${control.head}` : "another neuron of the layer";
  return (
    <section class="edit-bar" aria-label="Edits">
      <fieldset class="segments">
        <legend class="sr">Which run every panel shows</legend>
        {SIDES.map((id) => (
          <label>
            <input type="radio" name="pellucid-show" value={id} checked={app.showing.value === id} onChange={() => (app.showing.value = id)} />
            <span>{id}</span>
          </label>
        ))}
      </fieldset>
      <ul class="edits">
        {edits.map((edit, at) => (
          <li>
            {nameOf(edit, base)}: {HOWS[edit.how]}
            <button type="button" class="quiet" aria-label={`Remove: ${nameOf(edit, base)}`} onClick={() => remove(app, at)}>
              ✕
            </button>
          </li>
        ))}
        {!app.server && edited.header.edits.map((edit) => <li>{`${edit.name}${edit.heads ? ` head ${String(edit.heads)}` : ""}${edit.pos ? ` position ${String(edit.pos)}` : ""}: ${edit.how}`}</li>)}
      </ul>
      {app.server && (
        <Plain disabled={!ranOf(app).past.value.length} onClick={() => undo(app)}>
          Undo
        </Plain>
      )}
      <Note>
        KL {number(kl)} nats{control ? ` (${other}: ${number(control.kl)})` : ""} · {quoted(base.piece(tokens[0]))} − {quoted(base.piece(tokens[1]))}: {number(difference[0])} → {number(difference[1])}
      </Note>
    </section>
  );
}
