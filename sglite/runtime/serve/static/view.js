// Elements of the conversation. Whatever a model or a server says is put in as text, never as markup.

/** An element with its properties and children; children may be text. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Lets `node`, a text node, show `text`, which begins with what it shows already. */
function grow(node, text) {
  if (text.length > node.length) node.appendData(text.slice(node.length));
}

/** What somebody wrote. */
export function messageView(text) {
  return element("article", { className: "turn user", ariaLabel: "You" }, element("p", { className: "text" }, text));
}

/** Something that went wrong. */
export function errorView(error) {
  const where = [error.status && `HTTP ${error.status}`, error.param && `field ${error.param}`].filter(Boolean).join(", ");
  const view = element("div", { className: "error", role: "alert" }, element("strong", {}, error.message));
  if (where) view.append(element("span", {}, ` (${where})`));
  return view;
}

/** An answer while it grows and when it is there. */
export class TurnView {
  element = element("article", { className: "turn assistant", ariaLabel: "Answer", ariaBusy: "true" });
  #turn;
  #thought = new Text();
  #thoughtBox = element("details", { className: "thought", hidden: true });
  #thoughtTitle = element("summary", {}, "Thinking");
  #text = new Text();
  #textBox = element("p", { className: "text" }, this.#text);
  #calls = [];
  #foot = element("p", { className: "foot" });

  constructor(turn) {
    this.#turn = turn;
    this.#thoughtBox.append(this.#thoughtTitle, element("p", {}, this.#thought));
    this.element.append(this.#thoughtBox, this.#textBox);
  }

  /** Shows what the turn has by now. */
  update() {
    const turn = this.#turn;
    grow(this.#thought, turn.reasoning);
    this.#thoughtBox.hidden = turn.reasoning === "";
    grow(this.#text, turn.content);
    this.#textBox.hidden = turn.content === "" && (turn.calls.length > 0 || turn.totalMs !== null);
    for (const [index, call] of turn.calls.entries()) {
      if (call === undefined) continue;
      this.#calls[index] ??= new CallView(this.element, call);
      this.#calls[index].update();
    }
  }

  /** Nothing more comes. `remarks`: what is to be said about the answer. */
  end(remarks) {
    this.update();
    this.element.ariaBusy = "false";
    this.#thoughtTitle.textContent = "Thoughts";
    this.#foot.textContent = remarks.join(" · ");
    this.element.append(this.#foot);
  }

  /** Asks for the results of the calls; `send` gets them as messages. */
  askForResults(send) {
    const button = element("button", { type: "submit" }, this.#calls.length > 1 ? "Send results" : "Send result");
    const form = element("form", { className: "results", ariaLabel: "Results of the calls" });
    form.append(...this.#calls.map((call) => call.resultField()), button);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send(this.#calls.map((call) => call.result()));
    });
    this.element.append(form);
    form.querySelector("textarea").focus();
    this.allowResults = (allowed) => {
      button.hidden = !allowed;
      for (const field of form.querySelectorAll("textarea")) field.readOnly = !allowed;
    };
  }
}

/** One call in an answer. */
class CallView {
  #call;
  #name = new Text();
  #arguments = new Text();
  #result = null;

  constructor(parent, call) {
    this.#call = call;
    const title = element("h3", {}, "Call of ", element("code", {}, this.#name));
    const shown = element("pre", { tabIndex: 0, ariaLabel: "Arguments" }, this.#arguments);
    parent.append(element("section", { className: "call" }, title, shown));
  }

  update() {
    grow(this.#name, this.#call.name);
    grow(this.#arguments, this.#call.arguments);
  }

  resultField() {
    this.#result = element("textarea", { rows: 2, className: "code", spellcheck: false });
    return element("label", {}, `Result of ${this.#call.name}`, this.#result);
  }

  result() {
    return { role: "tool", tool_call_id: this.#call.id, content: this.#result.value };
  }
}
