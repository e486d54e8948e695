// The keyboard. Nothing happens while somebody types into a field or a dialog is open.

export function keys(actions) {
  const plain = {
    n: () => actions.step(1),
    b: () => actions.step(-1),
    c: () => actions.set("confirmed"),
    a: () => actions.set("absent"),
    p: actions.placeHere,
    delete: () => actions.set("missing"),
    backspace: () => actions.set("missing"),
    u: () => actions.back("undo"),
    enter: () => actions.finish("done"),
    s: () => actions.finish("skip"),
    " ": () => {
      actions.set("confirmed");
      actions.step(1);
    },
    m: actions.enlarge,
    l: actions.names,
    "+": () => actions.zoom(1.3),
    "=": () => actions.zoom(1.3),
    "-": () => actions.zoom(1 / 1.3),
    0: actions.reset,
    "?": () => document.getElementById("keys").showModal(),
  };

  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=range]), select, textarea");
    if (event.key === "Escape" && typing) typing.blur();
    if (typing || document.querySelector("dialog[open]") || event.altKey) return;
    const key = event.key.toLowerCase();
    let act = plain[key];
    if (event.ctrlKey || event.metaKey) act = { y: () => actions.back("redo"), z: () => actions.back(event.shiftKey ? "redo" : "undo") }[key];
    else if (event.shiftKey && key === "u") act = () => actions.back("redo");
    else if ((key === "enter" || key === " ") && event.target.closest("button")) return;
    if (!act || (event.repeat && !["n", "b", "u", "+", "-"].includes(key))) return;
    event.preventDefault();
    act();
  });
}
