"use strict";
// Each slider shows one section of its cut in all panels; #z=12&y=40 is a link to sections.
const cuts = [...document.querySelectorAll("[data-cut]")].map((element) => {
  const slider = element.querySelector("input");
  const label = element.querySelector("output");
  const places = JSON.parse(element.dataset.places);
  const pictures = [...element.querySelectorAll("figure")].map((figure) => [...figure.querySelectorAll("img")]);

  function show(number) {
    for (const panel of pictures) panel.forEach((picture, i) => { picture.hidden = i !== number; });
    slider.value = number;
    label.textContent = places[number].text;
    slider.setAttribute("aria-valuetext", places[number].text);
  }

  function nearest(section) {
    const distance = (i) => Math.abs(places[i].section - section);
    return places.reduce((best, _, i) => (distance(i) < distance(best) ? i : best), 0);
  }

  return { axis: element.dataset.cut, slider, places, show, nearest };
});

function showLinked() {
  const linked = new URLSearchParams(location.hash.slice(1));
  for (const cut of cuts) {
    const section = Number.parseInt(linked.get(cut.axis), 10);
    if (Number.isFinite(section)) cut.show(cut.nearest(section));
  }
}

for (const cut of cuts) {
  cut.slider.closest(".controls").hidden = false;
  cut.slider.addEventListener("input", () => {
    cut.show(Number(cut.slider.value));
    const link = cuts.map((other) => `${other.axis}=${other.places[other.slider.value].section}`).join("&");
    history.replaceState(null, "", `#${link}`);
  });
}

const contrast = document.querySelector("#contrast");
if (contrast) {
  contrast.closest(".contrast").hidden = false;
  contrast.addEventListener("input", () => {
    document.documentElement.style.setProperty("--contrast", 2 ** Number(contrast.value));
  });
}

showLinked();
window.addEventListener("hashchange", showLinked);
