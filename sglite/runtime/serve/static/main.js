// The page: settings, the conversation, and one request at a time.

import { figures, summary } from "./costs.js";
import { eventsOf } from "./events.js";
import { BadSetting, call, requestBody, schemaOf, toolsOf } from "./request.js";
import { BrokenStream, Turn } from "./turn.js";
import { element, errorView, messageView, TurnView } from "./view.js";

const KEY = "sglite-api-key";
const TEXTS = ["model", "system", "temperature", "max-tokens", "seed", "schema", "tools", "choice"];
const CHOICES = [["auto", "auto"], ["required", "required"], ["none", "none"]];
const EXAMPLES = {
  schema: {
    type: "object",
    properties: { name: { type: "string", maxLength: 40 }, age: { type: "integer", minimum: 0, maximum: 120 } },
    required: ["name", "age"],
    additionalProperties: false,
  },
  tools: [{
    name: "get_weather",
    description: "The weather in a city.",
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 40 }, unit: { enum: ["celsius", "fahrenheit"] } },
      required: ["city", "unit"],
      additionalProperties: false,
    },
  }],
};

const at = (id) => document.getElementById(id);
const log = at("log");

/** Messages so far, without the system prompt. */
let messages = [];
/** Ends the request that is under way; nothing when there is none. */
let running = null;
/** The answer whose calls wait for results. */
let waiting = null;

// --- asking -----------------------------------------------------------------------------------------------------

/** Asks for the next turn, after `added`. `undo`: shows things as they were, for when nothing comes of it. */
async function ask(added, undo) {
  const body = settled(added);
  if (body === null) return undo();
  const conversation = messages;
  conversation.push(...added);
  const turn = new Turn();
  const view = new TurnView(turn);
  show(view.element);
  const ending = new AbortController();
  running = ending;
  busy(true);
  let ignored = null;
  let failure = null;
  try {
    const response = await call("v1/chat/completions", at("key").value, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: ending.signal,
    });
    ignored = response.headers.get("X-Sglite-Ignored");
    await follow(response.body, turn, view);
  } catch (error) {
    failure = error;
  }
  if (conversation !== messages) return; // Another one has begun, which this answer has no place in.
  running = null;
  turn.end();
  const stopped = failure?.name === "AbortError";
  if (failure && !stopped) {
    conversation.splice(conversation.length - added.length);
    fail(failure, view, undo);
  } else {
    finish(turn, view, { stopped, ignored, structured: body.response_format !== undefined });
  }
  busy(false);
}

/** The request, or nothing where a setting cannot be sent; that is shown. */
function settled(added) {
  try {
    const texts = Object.fromEntries(TEXTS.map((id) => [id, at(id).value]));
    const body = requestBody({ ...texts, parallel: at("parallel").checked }, [...messages, ...added]);
    at("sent").textContent = JSON.stringify(body, null, 2);
    return body;
  } catch (error) {
    if (!(error instanceof BadSetting)) throw error;
    at("settings").open = true;
    tell(`${at(error.field).labels[0].textContent}: ${error.message}`);
    at(error.field).focus();
    return null;
  }
}

/** Reads a stream to its end. The page is drawn once a frame, however many chunks there are. */
async function follow(stream, turn, view) {
  let drawn = 0;
  const draw = () => {
    drawn = 0;
    keepingTheEnd(() => view.update());
  };
  try {
    for await (const data of eventsOf(stream)) {
      if (data === "[DONE]") return;
      turn.add(JSON.parse(data));
      drawn ||= requestAnimationFrame(draw);
    }
  } finally {
    cancelAnimationFrame(drawn);
  }
  throw new BrokenStream("the connection was closed before the answer's end");
}

function finish(turn, view, { stopped, ignored, structured }) {
  const calls = turn.calls.length > 0 && !stopped && turn.finish !== "length";
  const remarks = [...summary(turn)];
  if (stopped) remarks.unshift("stopped");
  if (turn.finish === "length") remarks.unshift("cut off at the limit of tokens");
  if (structured && turn.content !== "") remarks.unshift(isJson(turn.content) ? "valid JSON" : "not valid JSON");
  if (ignored) remarks.push(`ignored by the server: ${ignored}`);
  keepingTheEnd(() => view.end(remarks));
  at("figures").replaceChildren(...figures(turn));
  const message = turn.message();
  if (!calls) delete message.tool_calls;
  messages.push({ ...message, content: calls ? message.content : turn.content });
  if (!calls) return;
  waiting = view;
  keepingTheEnd(() => view.askForResults((results) => answer(view, results)));
}

/** Goes on with what the user says the calls gave. */
function answer(view, results) {
  waiting = null;
  view.allowResults(false);
  ask(results, () => {
    waiting = view;
    view.allowResults(true);
  });
}

function fail(error, view, undo) {
  keepingTheEnd(() => {
    view.update();
    if (view.element.innerText.trim() === "") view.element.remove();
    else view.end(["broken off"]);
    undo();
    log.append(errorView(error));
  });
  if (error.status === 401 || error.status === 403) askForKey();
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

// --- the conversation -------------------------------------------------------------------------------------------

/** Changes the log; if its end was in sight, it stays so. */
function keepingTheEnd(change) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function show(view) {
  log.querySelectorAll(".error").forEach((shown) => shown.remove());
  log.append(view);
  log.scrollTop = log.scrollHeight;
}

function busy(is) {
  at("send").hidden = is;
  at("stop").hidden = !is;
  at("send").disabled = waiting !== null;
  tell(is ? "answering" : waiting ? "waiting for the results of the calls" : "");
  if (!is && !waiting) at("prompt").focus();
}

function tell(text) {
  at("status").textContent = text;
}

function send() {
  const text = at("prompt").value;
  if (running || waiting || text.trim() === "") return;
  const view = messageView(text);
  show(view);
  at("prompt").value = "";
  ask([{ role: "user", content: text }], () => {
    view.remove();
    at("prompt").value ||= text;
  });
}

function fresh() {
  running?.abort();
  running = null;
  messages = [];
  waiting = null;
  log.replaceChildren();
  busy(false);
}

// --- settings ---------------------------------------------------------------------------------------------------

/** Fills the list of models. `first`: nobody is typing yet, so the field for the key may take the focus. */
async function loadModels(first) {
  let names = ["default"];
  try {
    const answer = await (await call("v1/models", at("key").value)).json();
    names = answer.data.map((model) => model.id);
    tell("");
  } catch (error) {
    tell(error.message);
    if (first && error.status === 401) askForKey();
  }
  at("model").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
}

function askForKey() {
  at("settings").open = true;
  at("key").focus();
}

/** Says below a field what is in it, or what is wrong with it. */
function note(field, read) {
  let said;
  let wrong = false;
  try {
    said = read(at(field).value);
  } catch (error) {
    wrong = true;
    said = error.message;
  }
  at(`${field}-note`).textContent = said;
  at(field).ariaInvalid = String(wrong);
}

function noteSchema() {
  note("schema", (text) => (schemaOf(text) === undefined ? "" : "The answer will be JSON of this schema."));
}

function noteTools() {
  let names = [];
  note("tools", (text) => {
    names = toolsOf(text).map((tool) => tool.function.name);
    return names.join(", ");
  });
  const options = [...CHOICES, ...names.map((name) => [`function:${name}`, name])];
  const chosen = at("choice").value;
  at("choice").replaceChildren(...options.map(([value, label]) => element("option", { value }, label)));
  if (options.some(([value]) => value === chosen)) at("choice").value = chosen;
}

function begin() {
  at("key").value = sessionStorage.getItem(KEY) ?? "";
  at("key").addEventListener("change", () => {
    sessionStorage.setItem(KEY, at("key").value);
    loadModels(false);
  });
  at("options").addEventListener("submit", (event) => event.preventDefault());
  at("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  at("stop").addEventListener("click", () => running?.abort());
  at("fresh").addEventListener("click", fresh);
  at("schema").addEventListener("input", noteSchema);
  at("tools").addEventListener("input", noteTools);
  for (const button of document.querySelectorAll("[data-example]")) {
    const field = button.dataset.example;
    button.addEventListener("click", () => {
      at(field).value = JSON.stringify(EXAMPLES[field], null, 2);
      at(field).dispatchEvent(new Event("input"));
    });
  }
  at("settings").open = matchMedia("(min-width: 60rem)").matches;
  noteTools();
  loadModels(true);
  at("prompt").focus();
}

begin();
