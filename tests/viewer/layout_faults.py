"""What is wrong with how a screen is laid out, whatever the fonts: small pictures do not show a token that is gone."""

from __future__ import annotations

from watched_page import Watched

_FAULTS = """() => {
  const found = [], root = document.querySelector("#pellucid-viewer"), wide = document.documentElement.clientWidth;
  const name = (one) => `${one.tagName.toLowerCase()}.${one.className} ${(one.textContent || "").slice(0, 20)}`;
  const scrolls = (one) =>
    one !== root && (getComputedStyle(one).overflowX !== "visible" || scrolls(one.parentElement));
  const shown = (one) => one.checkVisibility({visibilityProperty: true, opacityProperty: true});
  for (const one of root.querySelectorAll("h1, h2, [role=tab], .token, .figure, .figure canvas, .figure canvas + *")) {
    const hidden = one.closest(".sr, details:not([open])");
    if (!hidden && !shown(one)) found.push(`not shown: ${name(one)}`);
  }
  for (const one of root.querySelectorAll("*")) {
    const box = one.getBoundingClientRect();
    if (box.width && !one.closest(".sr") && (box.left < -1 || box.right > wide + 1) && !scrolls(one.parentElement))
      found.push(`beyond the screen: ${name(one)}`);
  }
  for (const canvas of root.querySelectorAll(".figure canvas:not(.top)")) {
    const {width, height} = canvas;
    const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
    copy.drawImage(canvas, 0, 0);
    const dots = new Uint32Array(copy.getImageData(0, 0, width, height).data.buffer);
    if (dots.every((dot) => dot === dots[0])) found.push(`nothing drawn: ${name(canvas.closest(".figure"))}`);
    if (Math.abs(width / devicePixelRatio - canvas.clientWidth) > 1)
      found.push(`stretched: ${name(canvas.closest(".figure"))}`);
  }
  for (const list of [".screen", "main", ".body"].flatMap((kind) => [...root.querySelectorAll(kind)])) {
    const boxes = [...list.children].filter((one) => one.matches(":not(.sr)") && one.getClientRects().length);
    boxes.slice(1).forEach((one, i) => {
      const [a, b] = [boxes[i].getBoundingClientRect(), one.getBoundingClientRect()];
      if (b.top < a.bottom - 1 && b.left < a.right - 1) found.push(`covers what comes before it: ${name(one)}`);
    });
  }
  return found;
}"""


def faults(watched: Watched) -> list[str]:
    """Sentences on what is hidden, drawn over something else, cut off, stretched, or empty; none if all is well."""
    return watched.page.evaluate(_FAULTS)
