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

applyTheme();
render(<App />, document.body);
void open().then(resume);
