// Server-sent events: from the bytes of an answer to the data of its events, however the bytes are cut.

/** Reads event streams piece by piece. */
export class EventReader {
  #rest = "";
  #data = [];
  #returned = false;

  /** The data of every event that `text` completes. */
  feed(text) {
    if (text === "") return [];
    const own = this.#returned && text.startsWith("\n") ? text.slice(1) : text; // The other half of a line's end.
    this.#returned = own.endsWith("\r");
    const lines = (this.#rest + own).split(/\r\n|\n|\r/);
    this.#rest = lines.pop();
    const found = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length > 0) found.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
      } // Comments keep the connection alive; other fields are not used here.
    }
    return found;
  }
}

/** The data of each event of `body`, a stream of bytes, as it comes. */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const events = new EventReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* events.feed(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // Already over, or broken off: nothing is left to be told.
  }
}
