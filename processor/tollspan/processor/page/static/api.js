// Requests to the server beside this page. In: an endpoint and parameters. Out: parsed JSON, or a `Failure` that can be
// shown as it is: what went wrong and what to do.

/** What a person is told when a request fails: `message`, `hint`, HTTP `status` (0 = no answer). */
export class Failure extends Error {
  constructor(message, hint = "", status = 0) {
    super(message);
    this.hint = hint;
    this.status = status;
  }
}

/** Address of an endpoint: lists are repeated, what is empty is left out. */
export function address(endpoint, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "") query.append(name, each);
    }
  }
  const text = query.toString();
  return "api/" + endpoint + (text ? "?" + text : "");
}

/** GET as JSON. Raises Failure; an aborted request raises AbortError. */
export async function get(url, signal) {
  let response;
  try {
    response = await fetch(url, { signal, headers: { Accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service does not answer.", "Is tollspan serve still running? What is shown is what it said last.");
  }
  let body = null;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok && body !== null) return body;
  throw new Failure(
    body?.error || `The service answered ${response.status} ${response.statusText}.`,
    body?.hint || (response.status === 401 ? "Log in as a reader of the SQL port." : ""),
    response.status,
  );
}
