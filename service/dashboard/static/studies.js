// The list: marks studies and opens their comparison.
const link = document.getElementById("compare");

function count() {
  const marked = [...document.querySelectorAll("input[name=compared]:checked")].map((one) => one.value);
  link.hidden = marked.length < 2;
  link.textContent = `Compare ${marked.length}`;
  link.href = `/compare?studies=${marked.slice(0, 6).map(encodeURIComponent).join(",")}`;
}

document.addEventListener("change", count);
document.addEventListener("live", count);
count();
