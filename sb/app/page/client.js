// The REST interface, as the page uses it: models, and a request whose progress is streamed.

const token = () => sessionStorage.getItem("token");
const headers = () => (token() ? { Authorization: `Bearer ${token()}` } : {});

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  setTimeout(resolve, seconds * 1000);
  signal?.addEventListener("abort", () => reject(signal.reason));
});

// Asks for the token where one is needed, and again later where the server is busy.
async function ask(url, options, busy = () => {}) {
  for (;;) {
    const answer = await fetch(url, { ...options, headers: { ...options.headers, ...headers() } });
    if (answer.status === 429) {
      busy();
      await pause(Number(answer.headers.get("Retry-After")) || 2, options.signal);
      continue;
    }
    if (answer.status !== 401) return answer;
    const given = prompt("This server asks for its token");
    if (!given) throw new Error("a token is needed");
    if (!/^[\x21-\x7e]+$/.test(given.trim())) throw new Error("a token holds plain letters, digits and signs only");
    sessionStorage.setItem("token", given.trim());
  }
}

async function line(answer) {
  try {
    return (await answer.json()).detail;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

export async function models() {
  const answer = await ask("/v1/models", {});
  if (!answer.ok) throw new Error(await line(answer));
  return answer.json();
}

// Calls heard(kind, value) for every event, and with "busy"; resolves with the value of "done".
export async function inpaint(form, signal, heard) {
  const answer = await ask("/v1/inpaint", {
    method: "POST", body: form, signal, headers: { Accept: "text/event-stream" },
  }, () => heard("busy"));
  if (!answer.ok) throw new Error(await line(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = []; // of an event that is not yet whole; looked at once, for a result is long
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server went away");
    let piece = value;
    for (;;) {
      const before = parts.length ? parts.at(-1).slice(-1) : "";
      const end = (before + piece).indexOf("\n\n");
      if (end < 0) break;
      const text = parts.join("") + piece;
      const at = text.length - piece.length - before.length + end;
      const [first, second] = text.slice(0, at).split("\n");
      [parts, piece] = [[], text.slice(at + 2)];
      const kind = first.slice("event: ".length);
      const data = JSON.parse(second.slice("data: ".length));
      if (kind === "done") return data;
      if (kind === "error") throw new Error(data.detail);
      heard(kind, data);
    }
    if (piece) parts.push(piece);
  }
}

export function blobOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type });
}
