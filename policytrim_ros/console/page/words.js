// Every text of the page in the language of its reader, from strings.<language>.json.

export const LANGUAGES = ["en", "zh"];
let table = {};

export async function speak(language) {
  const answer = await fetch(`/page/strings.${language}.json`);
  if (!answer.ok) return;
  table = await answer.json();
  document.documentElement.lang = language === "zh" ? "zh-CN" : language;
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
}

// The text called `key`, with {name} replaced by values.name; the key itself when there is none.
export function say(key, values = {}) {
  return (table[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export const knows = (key) => key in table;
