// The image picker and the share link; Gradio gives `element`, `trigger` and `watch`.
const PICKER = () => {
  const refuse = (text) => trigger("upload", { refused: text });
  const read = (file) => {
    if (!file) return;
    const limit = Number(props.limit);
    if (file.size > limit * 1048576) {
      refuse(`${file.name} has ${(file.size / 1048576).toFixed(1)} MB; expected at most ${limit} MB: make it smaller first`);
      return;
    }
    const reader = new FileReader();
    reader.onload = () => trigger("upload", { name: file.name, data: reader.result.split(",")[1] || "" });
    reader.onerror = () => refuse(`${file.name} cannot be read; expected a file: choose another`);
    reader.readAsDataURL(file);
  };
  element.addEventListener("change", (event) => {
    if (event.target.id !== "upload") return;
    event.stopPropagation();
    read(event.target.files[0]);
    event.target.value = "";
  });
  element.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-id]");
    if (button) trigger("select", { id: button.dataset.id });
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    element.addEventListener(kind, (event) => {
      event.preventDefault();
      element.classList.toggle("over", kind === "dragover");
      if (kind === "drop") read(event.dataTransfer.files[0]);
    });
  }
};
const LINK = () => {
  let timer = null;
  watch("value", () => {
    clearTimeout(timer);
    timer = setTimeout(() => trigger("submit"), 250);
  });
  element.addEventListener("click", (event) => {
    if (!event.target.closest("button.copy")) return;
    const url = new URL(element.querySelector("#share").getAttribute("href"), location.href).href;
    navigator.clipboard.writeText(url).then(() => { event.target.textContent = "Copied"; }, () => prompt("The link", url));
  });
};
