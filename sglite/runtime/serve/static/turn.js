// One turn of the model as it grows: what the chunks of a stream add up to. Knows nothing of the page.

/** What a stream says that cannot be an answer. */
export class BrokenStream extends Error {}

export class Turn {
  content = "";
  reasoning = "";
  /** {id, name, arguments}, in the order of their index. */
  calls = [];
  finish = null;
  /** Everything that the server counted, by name. */
  counts = {};
  firstMs = null;
  totalMs = null;
  #begun;
  #now;

  constructor(now = () => performance.now()) {
    this.#now = now;
    this.#begun = now();
  }

  /** Takes in one chunk of `/v1/chat/completions`. */
  add(chunk) {
    if (chunk.error) throw new BrokenStream(chunk.error.message ?? JSON.stringify(chunk.error));
    count(this.counts, chunk.usage);
    for (const choice of chunk.choices ?? []) {
      this.#addDelta(choice.delta ?? {});
      this.finish = choice.finish_reason ?? this.finish;
    }
  }

  #addDelta(delta) {
    const content = delta.content ?? "";
    const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
    if (this.firstMs === null && (content || reasoning || delta.tool_calls?.length)) this.firstMs = this.#now() - this.#begun;
    this.content += content;
    this.reasoning += reasoning;
    for (const part of delta.tool_calls ?? []) {
      const call = (this.calls[part.index] ??= { id: "", name: "", arguments: "" });
      call.id ||= part.id ?? "";
      call.name ||= part.function?.name ?? "";
      call.arguments += part.function?.arguments ?? "";
    }
  }

  /** Nothing more comes. */
  end() {
    this.totalMs = this.#now() - this.#begun;
    this.calls = this.calls.filter((call) => call !== undefined);
  }

  /** The turn as a message of the conversation. */
  message() {
    const message = { role: "assistant", content: this.content };
    if (this.calls.length > 0) {
      if (!this.content) message.content = null;
      message.tool_calls = this.calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
    }
    return message;
  }
}

/** Puts every number of `part`, its details and our own accounting included, into `counts`; the latest counts. */
function count(counts, part) {
  for (const [name, value] of Object.entries(part ?? {})) {
    if (typeof value === "number") counts[name] = value;
    else if (name === "sglite" || name.endsWith("_details")) count(counts, value);
  }
}
