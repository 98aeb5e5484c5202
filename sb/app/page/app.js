// The page: a photo, a mask drawn on it, a request, its results, and on from there. A picture's own bytes are kept and
// sent on as they are: a canvas would change its pixels.

import { blobOf, inpaint, models } from "/page/client.js";
import { Mask } from "/page/mask.js";
import { Stage } from "/page/stage.js";

const $ = (id) => document.getElementById(id);
const stage = new Stage($("stage"), $("sheet"));
const mask = new Mask($("mask"), update);
const TASKS = { object: "Paint an object", remove: "Remove what is there", text_to_image: "Paint a whole scene" };
const state = { photo: null, name: "picture", tool: "brush", known: [], results: [], chosen: null, running: null };
const links = new Map(); // blob -> address

function address(blob) {
  if (!links.has(blob)) links.set(blob, URL.createObjectURL(blob));
  return links.get(blob);
}

// Lets go of results' addresses, and so of their bytes, except one that is kept.
function forget(results, kept) {
  for (const blob of results.flatMap((result) => [result.blob, result.mask]))
    if (blob && blob !== kept && links.has(blob)) {
      URL.revokeObjectURL(links.get(blob));
      links.delete(blob);
    }
}

function say(text, bad = false) {
  $("line").textContent = text;
  $("line").classList.toggle("bad", bad);
}

function update() {
  const running = state.running !== null;
  $("run").disabled = running || !state.photo || mask.empty();
  const drawing = !running && state.chosen === null;
  $("undo").disabled = !drawing || !mask.past.length;
  $("clear").disabled = !drawing || mask.empty();
  $("download").disabled = !state.photo;
  $("run").hidden = running;
  $("stop").hidden = $("progress").hidden = !running;
  $("compare").hidden = state.chosen === null;
  $("mask").hidden = !drawing;
}

async function show(blob, name) {
  const picture = $("picture");
  const tried = new Image(); // what is shown stays until the other is known to be a picture
  tried.src = address(blob);
  try {
    await tried.decode();
    picture.src = tried.src;
    await picture.decode();
  } catch {
    say("This file is no picture that the browser can show.", true);
    return false;
  }
  forget(state.results, blob);
  Object.assign(state, { photo: blob, name: name ?? state.name, results: [], chosen: null });
  $("drop").hidden = true;
  $("size").textContent = `${picture.naturalWidth} x ${picture.naturalHeight}`;
  $("after").hidden = $("seen").hidden = true;
  $("results").replaceChildren();
  stage.show(picture.naturalWidth, picture.naturalHeight);
  mask.reset(picture.naturalWidth, picture.naturalHeight);
  $("brush").max = Math.max(8, Math.round(Math.max(stage.width, stage.height) / 3));
  $("brush").value = Math.max(2, Math.round(Math.max(stage.width, stage.height) / 16));
  say("");
  return true;
}

async function open(file) {
  if (file && !state.running && (await show(file, file.name.replace(/\.[^.]*$/, "")))) remember("opened", file);
}

function thumbnail(blob, title, chosen) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = title;
  const picture = document.createElement("img");
  picture.src = address(blob);
  picture.alt = title;
  button.append(picture);
  button.addEventListener("click", chosen);
  return button;
}

function remember(title, blob) {
  $("history").prepend(thumbnail(blob, title, () => state.running || show(blob)));
}

function compare() {
  const share = Number($("slider").value);
  $("after").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  $("seen").hidden = !$("overlay").checked || !state.results[state.chosen]?.mask;
}

function choose(index) {
  state.chosen = index;
  const { blob, mask: seen } = state.results[index];
  $("after").src = address(blob);
  $("after").hidden = false;
  if (seen) $("seen").style.maskImage = `url(${address(seen)})`;
  $("slider").value = 100;
  [...$("results").children].forEach((child, i) => child.setAttribute("aria-pressed", i === index));
  compare();
  update();
}

function discard() {
  forget(state.results);
  Object.assign(state, { results: [], chosen: null });
  $("results").replaceChildren();
  $("after").hidden = $("seen").hidden = true;
  update();
}

async function wish() {
  const form = new FormData();
  const drawn = await mask.file();
  if (!drawn) throw new Error("the browser could not write the mask");
  form.append("image", state.photo, "image");
  form.append("mask", drawn, "mask.png");
  for (const name of ["negative", "steps", "guidance", "variations", "model", "task", "format"])
    if ($(name).value !== "") form.append(name, $(name).value);
  if (!$("texts").hidden) form.append("text", $("text").value);
  form.append("seed", $("seed").value === "" ? Math.floor(Math.random() * 2 ** 31) : $("seed").value);
  form.append("precision", Number($("precision").value) / 100);
  return form;
}

async function run() {
  state.running = new AbortController();
  discard();
  $("progress").removeAttribute("value");
  say("");
  update();
  $("stage").scrollIntoView({ block: "nearest" });
  try {
    const done = await inpaint(await wish(), state.running.signal, (kind, value) => {
      if (kind === "busy") say("many are waiting: trying again in a moment");
      if (kind === "queued" && value.ahead) say(`${value.ahead} before you`);
      if (kind !== "progress") return;
      $("progress").value = value.step / value.steps;
      say(`step ${value.step} of ${value.steps}`);
      if (value.previews.length) {
        $("after").src = `data:image/jpeg;base64,${value.previews[0]}`;
        $("after").style.clipPath = "";
        $("after").hidden = false;
      }
    });
    state.results = done.results.map((result) => ({
      blob: blobOf(result.image, result.media_type), seed: result.seed, lossy: done.lossy,
      mask: result.predicted_mask && blobOf(result.predicted_mask, "image/png"),
    }));
    $("results").replaceChildren(
      ...state.results.map((result, i) => thumbnail(result.blob, `seed ${result.seed}`, () => choose(i))),
    );
    const seconds = Object.values(done.results[0].seconds).reduce((a, b) => a + b, 0);
    const lossy = done.lossy ? " JPEG is lossy: every pixel of the picture changed a little." : "";
    const converted = done.converted ? ` Of this photo, ${done.converted}.` : "";
    say(`painted in ${seconds.toFixed(1)} s with seed ${done.results[0].seed}.${lossy}${converted}`);
    state.running = null;
    choose(0);
  } catch (error) {
    state.running = null;
    discard();
    say(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  }
  update();
}

async function accept() {
  if (state.chosen === null) return;
  const { blob, seed } = state.results[state.chosen];
  state.chosen = null;
  const what = $("texts").hidden ? $("task").selectedOptions[0].text : $("text").value || "painted";
  const title = `${what}, seed ${seed}`;
  await show(blob);
  remember(title, blob);
}

function download() {
  const link = document.createElement("a");
  const blob = state.chosen === null ? state.photo : state.results[state.chosen].blob;
  link.href = address(blob);
  link.download = blob.name ?? `${state.name}-painted.${blob.type === "image/jpeg" ? "jpg" : "png"}`;
  link.click();
}

function pick(tool) {
  state.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]"))
    button.setAttribute("aria-pressed", button.dataset.tool === tool);
  $("stage").style.cursor = tool === "move" ? "grab" : "crosshair";
}

function draw() {
  const fingers = new Map(); // pointer -> its last event
  let first = null; // where a box began
  let last = null; // where a stroke is, null where there is none
  let moving = false;

  function began(event) {
    if (!state.photo || state.running || event.button > 1) return;
    fingers.set(event.pointerId, event);
    $("stage").setPointerCapture(event.pointerId);
    if (fingers.size === 2 && last !== null && !moving) mask.undo(); // the first of two fingers drew nothing
    moving = fingers.size > 1 || state.held || state.tool === "move" || event.button === 1 || state.chosen !== null;
    last = null;
    if (moving) return;
    mask.remember();
    first = last = stage.at(event);
    if (state.tool !== "box") mask.stroke(last, last, Number($("brush").value), state.tool === "erase");
  }

  function moved(event) {
    ring(event);
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const others = [...fingers.values()].filter((other) => other !== before);
    fingers.set(event.pointerId, event);
    if (moving && others.length) stage.pinch([before, others[0]], [event, others[0]]);
    else if (moving) stage.move(event.clientX - before.clientX, event.clientY - before.clientY);
    if (moving || last === null) return;
    const now = stage.at(event);
    if (state.tool === "box") mask.box(first, now);
    else mask.stroke(last, now, Number($("brush").value), state.tool === "erase");
    last = now;
  }

  function ended(event) {
    if (!fingers.delete(event.pointerId)) return;
    if (state.tool === "box" && last !== null && last === first) mask.past.pop(); // a click drew no box
    last = null;
    update();
  }

  $("stage").addEventListener("pointerdown", began);
  $("stage").addEventListener("pointermove", moved);
  for (const end of ["pointerup", "pointercancel"]) $("stage").addEventListener(end, ended);
  $("stage").addEventListener("pointerleave", () => ($("ring").hidden = true));
}

// The brush where the pointer is.
function ring(event) {
  const hidden = !state.photo || $("mask").hidden || !["brush", "erase"].includes(state.tool) || event.pointerType === "touch";
  $("ring").hidden = hidden;
  if (hidden) return;
  const { x, y } = stage.at(event);
  const size = Number($("brush").value);
  Object.assign($("ring").style, {
    width: `${(100 * size) / stage.width}%`, height: `${(100 * size) / stage.height}%`,
    left: `${(100 * (x - size / 2)) / stage.width}%`, top: `${(100 * (y - size / 2)) / stage.height}%`,
  });
}

function shown(model) {
  $("steps").placeholder = model.steps;
  $("guidance").placeholder = model.guidance;
  $("tasks").hidden = model.tasks.length < 2;
  $("task").replaceChildren(...model.tasks.map((task) => new Option(TASKS[task] ?? task.replaceAll("_", " "), task)));
  asked();
}

function asked() {
  const model = state.known[$("model").selectedIndex];
  $("texts").hidden = model.without_object.includes($("task").value);
}

function precision() {
  const value = Number($("precision").value) / 100;
  $("exact").textContent = value === 1 ? "outline" : value === 0 ? "box" : value.toFixed(2);
}

$("open").addEventListener("change", (event) => {
  open(event.target.files[0]);
  event.target.value = ""; // so that the same file can be opened again
});
$("maskfile").addEventListener("change", async (event) => {
  try {
    if (!state.photo) throw new Error("open a photo first");
    if (state.running || state.chosen !== null) throw new Error("accept or discard the result first");
    await mask.load(event.target.files[0]);
  } catch (error) {
    say(error.message, true);
  }
  event.target.value = "";
});
$("stage").addEventListener("dragover", (event) => { event.preventDefault(); $("stage").classList.add("over"); });
$("stage").addEventListener("dragleave", () => $("stage").classList.remove("over"));
$("stage").addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  open(event.dataTransfer.files[0]);
});
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => pick(button.dataset.tool));
$("undo").addEventListener("click", () => mask.undo());
$("task").addEventListener("change", asked);
$("clear").addEventListener("click", () => mask.clear());
$("in").addEventListener("click", () => stage.zoom(1.4));
$("out").addEventListener("click", () => stage.zoom(1 / 1.4));
$("fit").addEventListener("click", () => stage.fit());
$("slider").addEventListener("input", compare);
$("overlay").addEventListener("change", compare);
$("accept").addEventListener("click", accept);
$("discard").addEventListener("click", discard);
$("download").addEventListener("click", download);
$("precision").addEventListener("input", precision);
$("stop").addEventListener("click", () => state.running?.abort());
$("model").addEventListener("change", () => shown(state.known[$("model").selectedIndex]));
$("ask").addEventListener("submit", (event) => { event.preventDefault(); if (!$("run").disabled) run(); });
document.addEventListener("keydown", (event) => {
  if (event.target.matches("textarea, select, input:not([type=range], [type=checkbox])")) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && !$("undo").disabled) mask.undo();
  if (event.key === " " && $("stage").matches(":hover")) {
    event.preventDefault();
    state.held = true;
  }
  if (event.ctrlKey || event.metaKey) return; // the browser's own
  const tools = { b: "brush", e: "erase", r: "box" };
  if (tools[event.key]) pick(tools[event.key]);
  if (event.key === "+") stage.zoom(1.4);
  if (event.key === "-") stage.zoom(1 / 1.4);
  if (event.key === "0") stage.fit();
});
document.addEventListener("keyup", (event) => {
  if (event.key !== " " || !state.held) return;
  event.preventDefault(); // or the button that was pressed last is pressed again
  state.held = false;
});
draw();
pick("brush");
precision();
update();
try {
  state.known = await models();
  $("model").replaceChildren(...state.known.map((model) => new Option(model.id, model.id)));
  shown(state.known[0]);
  performance.mark("ready");
} catch (error) {
  say(error.message, true);
}
