"use strict";
// STUDY comes from pairs.js: {study: digest, question, pairs: [{left, right, input or null, text or null}]}
const $ = (id) => document.getElementById(id);
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" };
const PICTURES = ["input", "left", "right"];
const SMALL_PX = 200;
let rater = "", votes = [], ready = false;

const place = () => `${STUDY.study} ${rater}`;

function remember() {
  try {
    localStorage.setItem(place(), JSON.stringify(votes));
  } catch { /* a browser that keeps nothing: the votes live as long as the page */ }
}

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(place())) || [];
  } catch {
    return [];
  }
}

function open(is) {
  ready = is;
  for (const button of document.querySelectorAll("[data-vote]")) button.disabled = !is;
}

async function show() {
  const number = votes.length, all = STUDY.pairs.length, pair = STUDY.pairs[number];
  open(false);
  $("vote").hidden = !pair;
  $("end").hidden = Boolean(pair);
  if (!pair) {
    $("end").querySelector(".save").focus();
    return;
  }
  $("bar").max = all;
  $("bar").value = number;
  $("at").textContent = `${number + 1} of ${all}`;
  $("undo").disabled = number === 0;
  $("text").textContent = pair.text === null ? "" : `\u201c${pair.text}\u201d`;
  $("text").hidden = pair.text === null;
  $("inputs").hidden = pair.input === null;
  const shown = PICTURES.filter((name) => pair[name] !== null);
  for (const name of shown) $(name).src = pair[name];
  await Promise.all(shown.map((name) => $(name).decode().catch(() => {})));
  if (number !== votes.length) return;
  for (const name of shown) {
    $(name).classList.toggle("small", $(name).naturalWidth < SMALL_PX);
    $(name).style.setProperty("--ratio", $(name).naturalWidth / $(name).naturalHeight);
  }
  open(true);
  const next = STUDY.pairs[number + 1];
  if (next) for (const name of PICTURES) if (next[name] !== null) new Image().src = next[name];
}

function vote(answer) {
  if (!ready) return;
  votes.push(answer);
  remember();
  show();
}

function undo() {
  if (!votes.length) return;
  votes.pop();
  remember();
  show();
}

function save() {
  const content = JSON.stringify({ schema: 1, study: STUDY.study, rater, votes }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  link.download = `results-${rater.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

for (const at of document.querySelectorAll(".question")) at.textContent = STUDY.question;
for (const button of document.querySelectorAll(".save")) button.addEventListener("click", save);
for (const button of document.querySelectorAll("[data-vote]"))
  button.addEventListener("click", () => vote(button.dataset.vote));
$("count").textContent = STUDY.pairs.length;
$("outlined").hidden = STUDY.pairs[0].input === null;
$("undo").addEventListener("click", undo);
$("again").addEventListener("click", undo);
$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  rater = $("rater").value.trim();
  if (!rater) return;
  votes = remembered();
  $("start").hidden = true;
  show();
});
document.addEventListener("keydown", (event) => {
  if (!$("start").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const answer = KEYS[event.key];
  if (answer === undefined && event.key !== "Backspace") return;
  event.preventDefault();
  if (event.repeat) return;
  if (answer === undefined) undo();
  else if (!$("vote").hidden) vote(answer);
});
