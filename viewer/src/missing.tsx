// What a trace does not hold, in the words that its writer gave.

import { useApp } from "./state";
import { bytes } from "./text";

export function Missing({ what, children }: { what: string; children?: string }) {
  const app = useApp();
  const { left_out } = app.trace.value.header;
  const found = left_out.find((one) => what === one.what || what.startsWith(`${one.what}.`) || one.what.startsWith(`${what}.`));
  return (
    <section class="card missing">
      <p>
        <b>{children ?? `${what} is not in this file`}</b>
        {found ? `: ${found.why.replace(/\.$/, "")}` : ""}
        {found && found.bytes > 1 ? ` (${bytes(found.bytes)})` : ""}.
      </p>
    </section>
  );
}
