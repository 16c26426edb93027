// The connection to the server: what is newest comes in, orders go out; it comes back by itself.

const SILENCE_MS = 3000; // the server speaks at least every second
const LONGEST_WAIT_MS = 8000;

export function client() {
  let own = sessionStorage.getItem("client");
  if (!own) {
    own = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("client", own);
  }
  return own;
}

// Keeps the two WebSockets open. `on`: access(answer) before each attempt, message(state, you), picture(name, age_s, blob), lost().
export function connect(on) {
  let attempt = 0;
  let heard = 0;
  let sockets = [];
  let lost = false;

  const close = () => {
    for (const socket of sockets) {
      socket.onclose = socket.onmessage = null;
      socket.close();
    }
    sockets = [];
  };

  const again = () => {
    close();
    if (!lost) on.lost();
    lost = true;
    const wait = Math.min(LONGEST_WAIT_MS, 250 * 2 ** attempt++) * (0.75 + Math.random() / 2);
    setTimeout(open, wait);
  };

  const socketOf = (path) => {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`);
    socket.binaryType = "arraybuffer";
    socket.onclose = again;
    sockets.push(socket);
    return socket;
  };

  const open = async () => {
    try {
      const answer = await fetch("/access", { signal: AbortSignal.timeout(SILENCE_MS) });
      if (!on.access(await answer.json())) return; // the login opens the page again
    } catch {
      again();
      return;
    }
    heard = performance.now();
    const live = socketOf("/ws");
    live.onopen = () => [JSON.stringify({ client: client() }), "next", "next"].forEach((word) => live.send(word));
    live.onmessage = ({ data }) => {
      heard = performance.now();
      attempt = 0;
      lost = false;
      live.send("next");
      const { state, you } = JSON.parse(data);
      on.message(state, you);
    };
    const pictures = socketOf("/pictures");
    pictures.onopen = () => ["next", "next"].forEach((word) => pictures.send(word));
    pictures.onmessage = ({ data }) => {
      pictures.send("next");
      for (const [name, age_s, blob] of unpacked(data)) on.picture(name, age_s, blob);
    };
  };

  setInterval(() => sockets.length && performance.now() - heard > SILENCE_MS && again(), 500);
  open();
}

// [name, age in s, JPEG] of each picture of a message; see _picture_message in server.py.
function* unpacked(data) {
  const view = new DataView(data);
  for (let at = 0; at < data.byteLength; ) {
    const length = view.getUint8(at);
    const name = new TextDecoder().decode(new Uint8Array(data, at + 1, length));
    at += 1 + length;
    const bytes = view.getUint32(at + 4);
    yield [name, view.getFloat32(at), new Blob([new Uint8Array(data, at + 8, bytes)], { type: "image/jpeg" })];
    at += 8 + bytes;
  }
}

// Posts JSON; {ok, text}, where text is what the server said. `lost` when nobody answered.
export async function post(path, body) {
  try {
    const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    const words = await answer.json().catch(() => ({}));
    return { ok: answer.ok, text: words.said ?? words.error ?? String(answer.status) };
  } catch {
    return { ok: false, lost: true, text: "" };
  }
}
