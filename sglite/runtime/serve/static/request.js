// From the settings to a request, and from an answer's status to an error that says what happened.

/** Something in the settings that cannot be sent. `field`: the id of the element. */
export class BadSetting extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** What the server refused. */
export class ServerError extends Error {
  constructor(status, message, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** JSON text of a setting, or nothing. Throws `BadSetting`. */
function parsed(field, text) {
  if (text.trim() === "") return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new BadSetting(field, `not JSON: ${error.message}`);
  }
}

/** The schema in `text`, if any. */
export function schemaOf(text) {
  const schema = parsed("schema", text);
  if (schema === undefined || typeof schema === "boolean" || isObject(schema)) return schema;
  throw new BadSetting("schema", "a schema is an object");
}

/** The tools in `text`, in OpenAI's form: a list of them or one alone, with or without the wrapping. */
export function toolsOf(text) {
  const given = parsed("tools", text);
  if (given === undefined) return [];
  return (Array.isArray(given) ? given : [given]).map((tool, index) => {
    const inner = isObject(tool) ? (tool.function ?? tool) : undefined;
    if (typeof inner?.name !== "string") throw new BadSetting("tools", `tool ${index + 1} has no name`);
    return { type: "function", function: inner };
  });
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A number field's value, nothing where it is empty. */
function number(field, value) {
  if (value.trim() === "") return undefined;
  if (!Number.isFinite(Number(value))) throw new BadSetting(field, "not a number");
  return Number(value);
}

/** The body for `/v1/chat/completions`. `settings`: texts of the fields, by id. What is empty is not sent. */
export function requestBody(settings, messages) {
  const system = settings.system.trim() === "" ? [] : [{ role: "system", content: settings.system }];
  const body = { model: settings.model, messages: [...system, ...messages] };
  const schema = schemaOf(settings.schema);
  const tools = toolsOf(settings.tools);
  body.temperature = number("temperature", settings.temperature);
  body.max_tokens = number("max-tokens", settings["max-tokens"]);
  body.seed = number("seed", settings.seed);
  if (schema !== undefined) {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  }
  if (tools.length > 0) {
    const { choice } = settings;
    body.tools = tools;
    body.tool_choice = choice.startsWith("function:") ? { type: "function", function: { name: choice.slice(9) } } : choice;
    body.parallel_tool_calls = settings.parallel;
  }
  return { ...body, stream: true, stream_options: { include_usage: true } };
}

/** An answer with a good status. Throws `ServerError` with the server's own words. */
export async function call(path, key, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const text = await response.text();
  let said;
  try {
    said = JSON.parse(text).error;
  } catch {
    said = undefined; // Something on the way answered.
  }
  throw new ServerError(response.status, said?.message ?? (text.slice(0, 500) || response.statusText), said?.param);
}
