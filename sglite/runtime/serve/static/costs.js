// What an answer cost: the server's counters and the times that were measured here.

import { element } from "./view.js";

/** Counter, what it is called, and whether it is a part of the one above. */
const COUNTERS = [
  ["prompt_tokens", "prompt tokens", false],
  ["cached_tokens", "cached", true],
  ["computed_prompt_tokens", "computed", true],
  ["completion_tokens", "completion tokens", false],
  ["forced_tokens", "forced", true],
  ["reasoning_tokens", "thinking", true],
  ["forward_passes", "forward passes", false],
  ["replayed_tokens", "replayed tokens", false],
  ["queue_ms", "waiting, ms", false],
  ["compute_ms", "computing, ms", false],
];

/** Elements that show the costs of `turn`; what the server did not tell is left out. */
export function figures(turn) {
  const { counts } = turn;
  const rows = COUNTERS.filter(([name]) => name in counts).map(([name, label, part]) => row(label, counts[name], part));
  if (turn.firstMs !== null) rows.push(row("first token, ms (here)", turn.firstMs, false));
  rows.push(row("whole answer, ms (here)", turn.totalMs, false));
  const speed = perSecond(turn);
  if (speed !== null) rows.push(row("tokens a second", speed, false));
  const bars = [
    bar("Prompt", counts.prompt_tokens, counts.cached_tokens, "cached"),
    bar("Completion", counts.completion_tokens, counts.forced_tokens, "forced"),
  ];
  return [...bars.filter(Boolean), element("dl", {}, ...rows.flat())];
}

/** One line about the costs of `turn`. */
export function summary(turn) {
  const { prompt_tokens: prompt, cached_tokens: cached, completion_tokens: made } = turn.counts;
  const parts = [];
  if (prompt !== undefined) parts.push(`${prompt} prompt tokens${cached ? `, ${cached} of them cached` : ""}`);
  if (made !== undefined) parts.push(`${made} completion tokens`);
  return parts;
}

function row(label, value, part) {
  const shown = Number.isInteger(value) ? String(value) : value.toFixed(1);
  const className = part ? "part" : "";
  return [element("dt", { className }, label), element("dd", { className }, shown)];
}

/** A bar of `whole` tokens in which `part` is set off. */
function bar(title, whole, part, label) {
  if (!whole || part === undefined) return null;
  const parted = element("span", { className: "parted" });
  parted.style.width = `${(100 * part) / whole}%`;
  return element(
    "figure",
    {},
    element("div", { className: "bar", ariaHidden: "true" }, parted),
    element("figcaption", {}, `${title}: ${part} of ${whole} ${label}`),
  );
}

/** Speed behind the first token. */
function perSecond(turn) {
  const made = turn.counts.completion_tokens;
  if (!made || made < 2 || turn.firstMs === null || turn.totalMs - turn.firstMs < 1) return null;
  return (1000 * (made - 1)) / (turn.totalMs - turn.firstMs);
}
