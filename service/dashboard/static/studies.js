import { element, poll } from "./poll.js";

for (const row of document.querySelectorAll("#studies tr[data-terminal='false']")) {
  poll(`/v1/studies/${encodeURIComponent(row.dataset.study)}`, (study) => {
    const state = row.querySelector("[data-part=state]");
    state.textContent = study.state;
    state.className = `state ${study.state}`;
    const verdicts = (study.verdicts ?? []).map((one) => element("span", { class: "verdict", text: one.verdict ?? "" }));
    row.querySelector("[data-part=verdict]").replaceChildren(...verdicts, study.error ? study.error.code : "");
    return !study.is_terminal;
  });
}
