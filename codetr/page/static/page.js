// The page of `codetr web`. Text from outside is only ever set as text, and nothing is loaded from elsewhere.

const MAX_PICTURES = 100;  // each is kept with its boxes
const UNDER_WAY = 4;  // requests at a time, of which the server can make a batch
const MAX_TRIES = 20;  // of a picture, by itself, while a server is away
const POLL_SECONDS = 2;
const CROWD = 40;  // more boxes than this have their names shown one at a time

const at = (id) => document.getElementById(id);
const pictures = [];
let servers = [];
let settings = null;
let underWay = 0;
let ownServerAnswers = true;
let nextPoll;

// ---- the servers' state

async function poll() {
  try {
    const answer = await fetch("/api/state", { signal: AbortSignal.timeout(10000) });
    const state = await answer.json();
    if (!answer.ok) throw new Error(state.error);
    ({ servers } = state);
    ownServerAnswers = true;
    if (settings === null) begin(state.settings);
    settings = state.settings;
    showModels();
  } catch {
    ownServerAnswers = false;
  }
  showState();
  tryAgain();
  clearTimeout(nextPoll);
  nextPoll = setTimeout(poll, 1000 * POLL_SECONDS * (document.hidden ? 5 : 1));
}

function begin({ score_threshold: threshold, lowest_score: lowest }) {
  at("threshold").min = lowest;
  at("threshold").title = `Boxes below ${Math.round(lowest * 100)} % are not asked for: --lowest-score of codetr web`;
  at("threshold").value = threshold;
  showThreshold();
}

const models = () => servers.flatMap((server) => server.models.map((model) => ({ ...model, server })));
const chosen = () => models().find((model) => model.key === at("model").value);

function showModels() {
  const select = at("model");
  const options = models().map((model) => [model.key, servers.length > 1 ? `${model.name} at ${model.server.address}` : model.name]);
  const known = [...select.options].map((option) => [option.value, option.textContent]);
  if (JSON.stringify(known) !== JSON.stringify(options)) {
    const before = select.value;
    select.replaceChildren(...options.map(([key, name]) => new Option(name, key)));
    if (options.some(([key]) => key === before)) {
      select.value = before;
    } else if (before) {
      say(`The model that was chosen is gone; ${chosen()?.name ?? "none"} is chosen now.`);
      detectAllAnew();
    }
  }
  const ms = (value) => (value === undefined || value === null ? "" : value.toFixed(1));
  at("models").replaceChildren(...models().map(({ name, server, fault, latency }) => {
    const row = document.createElement("tr");
    const cells = [name, server.address, fault ?? "ready", latency?.count ?? 0, ms(latency?.last), ms(latency?.median), ms(latency?.slowest), ms(server.milliseconds)];
    row.append(...cells.map((cell) => element("td", "", cell)));
    return row;
  }));
}

function showState() {
  const model = chosen();
  let [text, kind] = ["no model", "bad"];
  if (!ownServerAnswers) {
    text = "this page's own server does not answer; is `codetr web` still running?";
  } else if (model?.fault) {
    text = model.fault;
  } else if (model) {
    const { latency } = model;
    kind = "good";
    text = `${model.name} at ${model.server.address} is ready`;
    if (latency) text += `; last picture ${latency.last.toFixed(0)} ms, median ${latency.median.toFixed(0)} ms`;
  }
  if (at("state").textContent !== text) at("state").textContent = text;
  at("dot").className = `dot ${kind}`;
}

// ---- pictures in

function add(files) {
  const left = MAX_PICTURES - pictures.length;
  const taken = [...files].slice(0, Math.max(0, left));
  if (taken.length < files.length) {
    say(`Left out: ${files.length - taken.length} of ${files.length}, because this page keeps ${MAX_PICTURES}; remove some first.`);
  }
  for (const file of taken) {
    const picture = { name: file.name || "picture", file, sent: null, answer: null, error: "", again: false, tries: 0, abort: null, waits: true };
    pictures.push(picture);
    build(picture);
  }
  at("all").hidden = pictures.length < 2;
  pump();
}

// What the server takes, by the first bytes of a file.
function isTaken(bytes) {
  const starts = (text, offset = 0) => [...text].every((char, index) => bytes[offset + index] === char.charCodeAt(0));
  return starts("\xff\xd8\xff") || starts("\x89PNG\r\n\x1a\n") || (starts("RIFF") && starts("WEBP", 8)) || starts("BM");
}

async function prepare(picture) {
  const first = new Uint8Array(await picture.file.slice(0, 16).arrayBuffer());
  if (first.length === 0) throw new Error("the file is empty");
  picture.sent = isTaken(first) ? picture.file : await converted(picture.file);
  if (picture.sent.size > settings.max_bytes) {
    const mebibytes = (size) => (size / 2 ** 20).toFixed(1);
    throw new Error(`${mebibytes(picture.sent.size)} MiB are more than the ${mebibytes(settings.max_bytes)} MiB that this page takes; make it smaller`);
  }
}

// AVIF, GIF and whatever else this browser reads and the server does not.
async function converted(file) {
  const url = URL.createObjectURL(file);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    for (const kind of ["image/png", "image/jpeg"]) {  // one without loss, if it is not too large
      const sent = await new Promise((resolve) => canvas.toBlob(resolve, kind, 0.95));
      if (sent !== null && (sent.size <= settings.max_bytes || kind === "image/jpeg")) return sent;
    }
  } catch { /* said below */ } finally {
    URL.revokeObjectURL(url);
  }
  throw new Error("this is no picture that the server or this browser reads; JPEG, PNG, WebP and BMP always are");
}

// ---- detection

function pump() {
  if (settings === null || !chosen()) return;
  for (const picture of pictures) {
    if (underWay >= UNDER_WAY) return;
    if (picture.waits) detect(picture);
  }
}

async function detect(picture) {
  picture.waits = false;
  picture.abort = new AbortController();
  const { signal } = picture.abort;
  underWay += 1;
  let [answer, error, again] = [null, "", false];
  try {
    if (picture.sent === null) await prepare(picture);
    [answer, error, again] = await ask(picture.sent, signal);
  } catch (fault) {
    error = fault.message;  // of the file
  }
  underWay -= 1;
  if (!signal.aborted && pictures.includes(picture)) {
    Object.assign(picture, { answer, error, again, tries: again ? picture.tries + 1 : 0, abort: null });
    show(picture);
    at("spoken").textContent = `${picture.name}: ${picture.element.querySelector(".said").textContent}`;
  }
  pump();
}

async function ask(content, signal) {
  const where = `/api/detect?model=${encodeURIComponent(at("model").value)}`;
  try {
    const answer = await fetch(where, { method: "POST", body: content, signal, headers: { "Content-Type": "application/octet-stream" } });
    const document = await answer.json();
    return answer.ok ? [document, "", false] : [null, document.error, document.again];
  } catch {
    return [null, "this page's own server does not answer; is `codetr web` still running?", true];
  }
}

// Pictures whose server was away are asked for again when it is back.
function tryAgain() {
  if (!ownServerAnswers || chosen()?.fault !== null) return;
  for (const picture of pictures) {
    if (picture.again && picture.tries < MAX_TRIES) restart(picture);
  }
  pump();
}

function restart(picture) {
  picture.abort?.abort();
  Object.assign(picture, { waits: true, again: false, error: "", answer: null, abort: null });
  show(picture);
}

function detectAllAnew() {
  for (const picture of pictures) {
    picture.tries = 0;
    restart(picture);
  }
  pump();
}

// ---- what is seen

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function build(picture) {
  const article = at("picture").content.firstElementChild.cloneNode(true);
  picture.element = article;
  picture.url = URL.createObjectURL(picture.file);
  article.querySelector(".name").textContent = picture.name;
  article.setAttribute("aria-label", picture.name);
  const image = article.querySelector("img");
  image.alt = picture.name;
  image.addEventListener("error", () => showStage(picture, false));
  image.addEventListener("load", () => showStage(picture, true));
  image.src = picture.url;
  const [stage, list] = [article.querySelector(".stage"), article.querySelector(".list")];
  const over = (event) => mark(picture, event.target.closest("[data-row]")?.dataset.row);
  for (const kind of ["pointerover", "focusin"]) list.addEventListener(kind, over);
  for (const kind of ["pointermove", "pointerdown"]) stage.addEventListener(kind, (event) => mark(picture, rowAt(picture, event)));
  for (const each of [stage, list]) each.addEventListener("pointerleave", () => mark(picture));
  list.addEventListener("focusout", () => mark(picture));
  article.addEventListener("click", (event) => act(event.target.closest("[data-do]")?.dataset.do, [picture]));
  at("pictures").append(article);
  show(picture);
}

function showStage(picture, isSeen) {
  picture.element.querySelector(".stage").classList.toggle("empty", !isSeen);
  showBoxes(picture);
}

function size(picture) {
  const { width, height, detections } = picture.answer;
  if (width) return [width, height];
  const image = picture.element.querySelector("img");
  if (image.naturalWidth) return [image.naturalWidth, image.naturalHeight];
  return [2, 3].map((side) => Math.max(1, ...detections.map(({ box }) => box[side])));
}

function show(picture) {
  const { answer, error, element: article } = picture;
  const image = article.querySelector("img");
  const source = answer?.picture ?? picture.url;
  if (image.getAttribute("src") !== source) image.src = source;
  for (const button of article.querySelectorAll("[data-do^=copy], [data-do^=save]")) button.disabled = answer === null;
  article.querySelector("[data-do=again]").hidden = !error;
  article.setAttribute("aria-busy", String(!answer && !error));
  showBoxes(picture);
}

function showBoxes(picture) {
  const stage = picture.element.querySelector(".stage");
  const list = picture.element.querySelector(".list");
  for (const box of stage.querySelectorAll(".box")) box.remove();
  list.replaceChildren();
  stage.querySelector(".unseen").hidden = !(picture.answer && stage.classList.contains("empty"));
  if (picture.answer) {
    const [width, height] = size(picture);
    stage.style.aspectRatio = stage.classList.contains("empty") ? `${width} / ${height}` : "";
    const { detections, looks } = picture.answer;
    const rows = detections.map((_, row) => row).sort((a, b) => detections[b].score - detections[a].score);
    const areas = detections.map(({ box: [x1, y1, x2, y2] }) => Math.max(0, x2 - x1) * Math.max(0, y2 - y1));
    const bySize = [...rows].reverse().sort((a, b) => areas[b] - areas[a]);
    for (const row of rows) {
      const { box: [x1, y1, x2, y2], score } = detections[row];
      const percent = `${Math.round(score * 100)} %`;
      const box = element("div", "box");
      box.classList.toggle("inside", y1 < height * 0.06);
      box.classList.toggle("right", x1 > width * 0.7);
      box.dataset.row = row;
      Object.assign(box.style, {
        left: `${(100 * x1) / width}%`,
        top: `${(100 * y1) / height}%`,
        width: `${(100 * Math.max(0, x2 - x1)) / width}%`,
        height: `${(100 * Math.max(0, y2 - y1)) / height}%`,
        zIndex: bySize.indexOf(row),  // a small one's name lies on a large one's
      });
      box.append(element("span", "label", `${looks[row].name} ${percent}`));
      const item = element("li", "");
      item.dataset.row = row;
      const button = element("button", "");
      button.type = "button";
      button.title = `x ${x1.toFixed(1)} to ${x2.toFixed(1)}, y ${y1.toFixed(1)} to ${y2.toFixed(1)} of ${width}×${height} pixels, score ${score.toFixed(3)}`;
      button.append(element("span", "mark"), element("span", "name", looks[row].name), element("span", "score", percent));
      item.append(button);
      for (const each of [box, button]) {
        each.style.setProperty("--box", looks[row].colour);
        each.style.setProperty("--ink", looks[row].ink);
      }
      stage.append(box);
      list.append(item);
    }
  }
  filter(picture);
}

// A score is a float32, and a threshold is one before they are compared, as everywhere in this project.
const threshold = () => Math.fround(Number(at("threshold").value));
const isKept = ({ score }) => score >= threshold();

function filter(picture) {
  const { answer, error, element: article } = picture;
  const said = article.querySelector(".said");
  said.classList.toggle("error", Boolean(error));
  let shown = 0;
  if (answer) {
    for (const each of article.querySelectorAll("[data-row]")) each.hidden = !isKept(answer.detections[each.dataset.row]);
    shown = answer.detections.filter(isKept).length;
    const [width, height] = size(picture);
    said.textContent = `${shown} of ${answer.detections.length} boxes, ${(answer.seconds * 1000).toFixed(0)} ms, ${width}×${height} pixels`;
  } else {
    said.textContent = error || "waiting for the server";
  }
  article.querySelector(".stage").classList.toggle("crowded", shown > CROWD);
}

// The smallest box under the pointer, so that one within another can be reached; of equal ones the best.
function rowAt(picture, { clientX, clientY }) {
  const whole = picture.element.querySelector(".stage").getBoundingClientRect();
  let [found, least] = [undefined, Infinity];
  for (const box of picture.element.querySelectorAll(".box:not([hidden])")) {
    const { left, top, right, bottom } = box.getBoundingClientRect();
    const isOver = left <= clientX && clientX <= right && top <= clientY && clientY <= bottom;
    const area = Math.round(((right - left) * (bottom - top) * 1e4) / (whole.width * whole.height));
    if (isOver && area < least) [found, least] = [box.dataset.row, area];
  }
  return found;
}

function mark(picture, row) {
  for (const each of picture.element.querySelectorAll(".box, .list button")) {
    const of = each.closest("[data-row]").dataset.row;
    each.classList.toggle("active", of === row);
  }
  picture.element.querySelector(".stage").classList.toggle("hovered", row !== undefined);
}

function showThreshold() {
  const text = `${Math.round(at("threshold").value * 100)} %`;
  at("shown").textContent = text;
  at("threshold").setAttribute("aria-valuetext", text);
  pictures.forEach(filter);
}

function say(text) {
  at("message").textContent = text;
}

// ---- JSON and COCO out

function asJson(list) {
  const images = list.map(({ name, answer, error }, index) => {
    if (!answer) return { file: name, error: error || "no answer yet" };
    const [width, height] = size(list[index]);
    return { file: name, width, height, detections: answer.detections.filter(isKept) };
  });
  return { score_threshold: Number(at("threshold").value), images };
}

function asCoco(list) {
  const categories = new Map();
  const annotations = [];
  const images = [];
  for (const picture of list.filter(({ answer }) => answer)) {
    const { answer, name } = picture;
    const [width, height] = size(picture);
    const id = images.length + 1;
    images.push({ id, file_name: name, width, height });
    for (const category of answer.categories) categories.set(category.id, category);
    answer.annotations.forEach((annotation, row) => {
      if (isKept(answer.detections[row])) annotations.push({ ...annotation, id: annotations.length + 1, image_id: id });
    });
  }
  return { images, categories: [...categories.values()].sort((a, b) => a.id - b.id), annotations };
}

function act(what, list) {
  if (!what) return;
  const [verb, form] = what.split("-");
  if (verb === "remove") {
    remove(list);
  } else if (verb === "again") {
    list.forEach((picture) => { picture.tries = 0; restart(picture); });
    pump();
  } else {
    const text = `${JSON.stringify(form === "json" ? asJson(list) : asCoco(list), null, 1)}\n`;
    const stem = list.length === 1 ? list[0].name.replace(/\.[^.]*$/, "") : "detections";
    if (verb === "copy") copy(text, form === "json" ? "JSON" : "COCO"); else save(text, `${stem}${form === "json" ? "" : "-coco"}.json`);
  }
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // only https:// and localhost have a clipboard for scripts
    const area = element("textarea", "");
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) {
      say(`This browser does not let the page copy; save the ${what} instead.`);
      return;
    }
  }
  say(`${what} is copied.`);
}

function save(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say(`${name} is saved.`);
}

function remove(list) {
  for (const picture of [...list]) {
    picture.abort?.abort();
    URL.revokeObjectURL(picture.url);
    picture.element.remove();
    pictures.splice(pictures.indexOf(picture), 1);
  }
  at("all").hidden = pictures.length < 2;
  say(list.length === 1 ? "The picture is removed." : "The pictures are removed.");
  at("choose").focus();
}

// ---- the camera

let shots = 0;

async function openCamera() {
  if (!navigator.mediaDevices) {  // only https:// and localhost have cameras for scripts; phones have this
    at("photo").click();
    return;
  }
  at("camera-fault").hidden = true;
  at("take").disabled = true;
  at("shooting").showModal();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: { ideal: "environment" }, width: { ideal: 1920 } } });
    if (!at("shooting").open) {
      stopCamera(stream);
      return;
    }
    at("video").srcObject = stream;
    await at("video").play();
    at("take").disabled = false;
    at("take").focus();
  } catch (fault) {
    at("camera-fault").textContent = `The camera cannot be used: ${fault.message || fault.name}. Choose pictures instead.`;
    at("camera-fault").hidden = false;
  }
}

function stopCamera(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

async function take() {
  const video = at("video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  at("shooting").close();
  shots += 1;
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  add([new File([blob], `camera-${shots}.jpg`, { type: "image/jpeg" })]);
}

// ---- events

at("choose").addEventListener("click", () => at("files").click());
for (const id of ["files", "photo"]) {
  at(id).addEventListener("change", () => {
    add(at(id).files);
    at(id).value = "";  // the same file may be chosen again
  });
}
at("camera").addEventListener("click", openCamera);
at("take").addEventListener("click", take);
at("stop").addEventListener("click", () => at("shooting").close());
at("shooting").addEventListener("close", () => {
  stopCamera(at("video").srcObject);
  at("video").srcObject = null;
});
at("threshold").addEventListener("input", showThreshold);
at("model").addEventListener("change", () => {
  showState();
  detectAllAnew();
});
at("all").addEventListener("click", (event) => act(event.target.closest("[data-do]")?.dataset.do, pictures));

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();  // the browser would leave the page and show the file
  document.body.classList.remove("over");
  if (event.dataTransfer.files.length === 0) say("Nothing was dropped that is a file.");
  add(event.dataTransfer.files);
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
document.addEventListener("paste", (event) => add(event.clipboardData.files));

poll();
