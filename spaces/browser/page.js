// The page: what is clicked and moved goes to the worker, which draws on the canvas.

const $ = id => document.getElementById(id);
const MAIN = 6, STEPS = 80; // sliders that are always seen; steps of a slider
const WIDE = { w: [-5, 5], s: [-10, 10] }; // of a direction whose range is unknown

let worker, strengths = {}, moving = null, name = "photo", busy = false, again = false, number = 0;
const waiting = new Map();

/** Offline once loaded: a service worker keeps each file, and lets the runtime use several threads. */
async function prepare() {
  if (!navigator.serviceWorker || navigator.serviceWorker.controller) return;
  try {
    const controlled = new Promise(resolve => navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true }));
    const { active } = await navigator.serviceWorker.register("sw.js");
    if (active) return; // the page was reloaded without it, on purpose
    const late = new Promise((_, reject) => setTimeout(reject, 5000));
    await Promise.race([controlled, late]);
    location.reload(); // so that all files come through it
    await new Promise(() => {});
  } catch {
    // a browser that keeps nothing, such as in a private window: the page works, but not offline
  }
}

function ask(action, given = {}, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++number, { resolve, reject });
    worker.postMessage({ id: number, action, given }, transfer);
  });
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function start() {
  await prepare();
  const sizes = await (await fetch("files.json")).json();
  worker = new Worker("worker.js", { type: "module" });
  worker.onerror = () => say("The page could not start. It needs a browser of 2023 or newer.", true);
  worker.onmessage = ({ data: { id, result, error, loaded } }) => {
    if (loaded) {
      $("progress").value = loaded / sizes.bytes;
      say(`Loading the model: ${(loaded / 1e6).toFixed(0)} of ${(sizes.bytes / 1e6).toFixed(0)} MB, once …`);
    } else if (error) waiting.get(id).reject(new Error(error));
    else waiting.get(id).resolve(result);
    waiting.delete(id);
  };
  const example = await (await fetch("example.jpg")).blob(), canvas = $("picture").transferControlToOffscreen();
  const { directions } = await ask("load", { canvas }, [canvas]);
  $("progress").hidden = true;
  directions.forEach(addSlider);
  $("file").disabled = false;
  await open(example, "example");
}

function addSlider({ name, description, space, strength_range, photo_limit }, index) {
  const [low, high] = (strength_range ?? WIDE[space]).map(x => Math.min(Math.max(x, -(photo_limit ?? Infinity)), photo_limit ?? Infinity));
  const row = document.createElement("div"), label = document.createElement("label"), output = document.createElement("output");
  const input = Object.assign(document.createElement("input"), { type: "range", id: `edit-${name}`, min: low, max: high, step: (high - low) / STEPS });
  row.className = "slider";
  row.title = description;
  label.htmlFor = output.htmlFor = input.id;
  label.textContent = name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");
  input.name = name;
  input.show = () => { output.textContent = input.valueAsNumber.toFixed(1); };
  input.oninput = () => {
    strengths[name] = input.valueAsNumber;
    moving = { name, range: high - low };
    input.show();
    $("original").ariaPressed = "false";
    show();
  };
  input.onchange = () => {
    moving = null;
    show();
  };
  row.append(label, output, input);
  (index < MAIN ? $("sliders") : $("more").lastElementChild).append(row);
  $("more").hidden = index < MAIN;
  reset();
}

/** Draw the edits; while a frame is drawn, only the last of further moves is remembered. */
async function show() {
  for (const save of [$("jpeg"), $("png")]) save.disabled = !Object.values(strengths).some(Boolean);
  again = busy;
  if (busy) return;
  busy = true;
  const original = $("original").ariaPressed === "true";
  await ask("edit", original ? { strengths: {} } : { strengths, moving }).catch(error => say(error.message, true));
  performance.mark("frame");
  busy = false;
  if (again) show();
}

function reset() {
  strengths = {};
  moving = null;
  for (const input of document.querySelectorAll(".slider input")) {
    input.value = 0;
    input.show();
  }
  $("original").ariaPressed = "false";
}

async function attempt(text, work) {
  say(text);
  $("edits").disabled = true;
  try {
    await work();
    $("edits").disabled = false;
  } catch (error) {
    say(error.message, true);
  }
}

async function open(file, title) {
  name = title;
  reset();
  await attempt("Looking for the face …", async () => {
    const { faces } = await ask("read", { file });
    $("several").hidden = faces < 2;
    $("face").replaceChildren(...Array.from({ length: faces }, (_, i) => new Option(i ? `${i + 1}` : "1, the largest", i)));
    await choose();
  });
}

async function choose() {
  await ask("choose", { index: Number($("face").value) });
  $("whole").ariaPressed = "false";
  await show();
  say(name === "example" ? "An example. Move a slider, or choose a photo of yours." : "Move a slider.");
}

async function save(type) {
  const blob = await ask("save", { strengths, type });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${name}-edited.${type.slice(6)}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  say(`Saved as ${link.download}, ${(blob.size / 1e6).toFixed(1)} MB.`);
}

const toggle = (button, act) => {
  button.onclick = () => {
    button.ariaPressed = String(button.ariaPressed !== "true");
    act(button.ariaPressed === "true");
  };
};
toggle($("original"), show);
toggle($("whole"), whole => ask("look", { whole }).then(show));
$("reset").onclick = () => (reset(), show());
for (const kind of ["jpeg", "png"]) $(kind).onclick = async () => {
  await attempt("Writing the photo …", () => save(`image/${kind}`));
  $("edits").disabled = false; // the face is there still, whatever became of the file
};
$("face").onchange = () => attempt("Looking at the face …", () => {
  reset();
  return choose();
});
const take = file => file && open(file, file.name.replace(/\.[^.]*$/, ""));
$("file").onchange = ({ target }) => {
  take(target.files[0]);
  target.value = ""; // so that the same file can be taken again
};
document.ondragover = event => event.preventDefault();
document.ondrop = event => {
  event.preventDefault();
  if (!$("file").disabled) take(event.dataTransfer.files[0]);
};
start().catch(error => say(error.message, true));
