import "./style/tokens.css";
import "./style/base.css";
import "./style/form.css";
import "./style/pictures.css";
import "./style/tabs.css";
import { render } from "preact";
import { App } from "./app";
import { open } from "./gallery";
import { resume } from "./jobs";
import { applyTheme } from "./theme";

// A file dropped beside a place for it must not take the page away.
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => event.preventDefault());

applyTheme();
render(<App />, document.body);
void open().then(resume);
