/** The tab Text: what the language model writes, as it writes it. */

import { signal } from "@preact/signals";
import { useRef, useState } from "preact/hooks";
import { ApiError, seedOf, type TextRequest } from "../api";
import { message } from "../format";
import { cancel, dismiss, submit, tasks, type Task } from "../jobs";
import { Where } from "../pictures/progress";
import { go } from "../place";
import { info } from "../server";
import { set as setPicture } from "../settings";
import { NumberField, TextField } from "../ui/field";

const EXAMPLES = ["river:", "forest:", "farmland:", "many buildings", "an airport with", "the sea"];

interface Typed {
  prompt: string;
  num_answers: string;
  max_new_tokens: string;
  temperature: string;
  top_k: string;
  top_p: string;
  repetition_penalty: string;
  seed: string;
  stop: string;
}

const typed = signal<Typed>({
  prompt: "",
  num_answers: "3",
  max_new_tokens: "48",
  temperature: "0.8",
  top_k: "0",
  top_p: "1",
  repetition_penalty: "1",
  seed: "",
  stop: "",
});
const refused = signal<ApiError | null>(null);
const FIELDS = new Set(Object.keys(typed.value));

function wrong(field: keyof Typed | null): string | null {
  const error = refused.value;
  if (error === null) return null;
  return (error.field !== null && FIELDS.has(error.field) ? error.field : null) === field ? error.message : null;
}

async function send(): Promise<void> {
  const { prompt, seed, stop, ...numbers } = typed.value;
  refused.value = null;
  const request: TextRequest = {
    kind: "text",
    prompt,
    seed: seed === "" ? null : seedOf(seed),
    stop: stop === "" ? [] : stop.split("\n").filter((line) => line !== ""),
    num_answers: Number(numbers.num_answers),
    max_new_tokens: Number(numbers.max_new_tokens),
    temperature: Number(numbers.temperature),
    top_k: Number(numbers.top_k),
    top_p: Number(numbers.top_p),
    repetition_penalty: Number(numbers.repetition_penalty),
  };
  try {
    refused.value = await submit(request);
  } catch (error) {
    refused.value = new ApiError(0, message(error));
  }
}

export function Text() {
  const form = useRef<HTMLFormElement>(null);
  const server = info.value;
  const now = typed.value;
  const set = (patch: Partial<Typed>) => (typed.value = { ...now, ...patch });
  const jobs = tasks.value.filter((task) => task.request.kind === "text").reverse();
  if (server !== null && server.text === null) {
    return <Missing title="Text" what="This server was started without a language model." />;
  }
  return (
    <div class="split">
      <form
        ref={form}
        class="ask"
        aria-label="Go on from a text"
        onSubmit={(event) => {
          event.preventDefault();
          void send();
        }}
      >
        <h1>Text</h1>
        <p class="lead">
          {server?.text?.model ?? "The language model"} goes on from what you begin; of at most{" "}
          <span class="figure">{server?.text?.context ?? "…"}</span> tokens.
        </p>
        <TextField
          label="Beginning"
          rows={3}
          required
          value={now.prompt}
          error={wrong("prompt")}
          onValue={(prompt) => set({ prompt })}
          onSubmit={() => form.current?.requestSubmit()}
        />
        <ul class="examples" aria-label="Examples of beginnings">
          {EXAMPLES.map((example) => (
            <li key={example}>
              <button type="button" aria-pressed={now.prompt === example} onClick={() => set({ prompt: example })}>
                {example}
              </button>
            </li>
          ))}
        </ul>
        <div class="pair even">
          <NumberField
            label="Answers"
            min={1}
            required
            value={now.num_answers}
            error={wrong("num_answers")}
            onValue={(num_answers) => set({ num_answers })}
          />
          <NumberField
            label="Tokens at most"
            min={1}
            required
            value={now.max_new_tokens}
            error={wrong("max_new_tokens")}
            onValue={(max_new_tokens) => set({ max_new_tokens })}
          />
        </div>
        <NumberField
          label="Temperature"
          min={0}
          step="any"
          required
          slider={{ min: 0, max: 2, step: 0.05 }}
          value={now.temperature}
          error={wrong("temperature")}
          hint="0 takes the likeliest word each time."
          onValue={(temperature) => set({ temperature })}
        />
        <NumberField
          label="Seed"
          min={0}
          placeholder="drawn"
          value={now.seed}
          error={wrong("seed")}
          onValue={(seed) => set({ seed })}
        />
        <details class="more">
          <summary>More settings</summary>
          <div class="stack">
            <div class="pair even">
              <NumberField
                label="Top k"
                min={0}
                required
                value={now.top_k}
                error={wrong("top_k")}
                hint="0 for all"
                onValue={(top_k) => set({ top_k })}
              />
              <NumberField
                label="Top p"
                min={0}
                max={1}
                step="any"
                required
                value={now.top_p}
                error={wrong("top_p")}
                onValue={(top_p) => set({ top_p })}
              />
            </div>
            <NumberField
              label="Repetition penalty"
              min={0}
              step="any"
              required
              value={now.repetition_penalty}
              error={wrong("repetition_penalty")}
              onValue={(repetition_penalty) => set({ repetition_penalty })}
            />
            <TextField
              label="Stops at"
              rows={2}
              value={now.stop}
              error={wrong("stop")}
              hint="One a line."
              onValue={(stop) => set({ stop })}
            />
          </div>
        </details>
        <div class="send">
          <button class="primary">Write</button>
          {wrong(null) !== null && (
            <p class="error" role="alert">
              {wrong(null)}
            </p>
          )}
        </div>
      </form>
      <div class="results">
        {jobs.length === 0 && (
          <div class="empty">
            <p class="empty-title">Nothing written yet</p>
            <p>What it writes comes here word by word, and can be drawn.</p>
          </div>
        )}
        {jobs.map((task) => (
          <Answers key={task.key} task={task} />
        ))}
      </div>
    </div>
  );
}

function Missing({ title, what }: { title: string; what: string }) {
  return (
    <div class="narrow">
      <h1>{title}</h1>
      <p class="lead">{what}</p>
    </div>
  );
}

function Answers({ task }: { task: Task }) {
  const { prompt } = task.request;
  const over = task.phase === "ended";
  return (
    <section class="answers" aria-label={`Answers to ${prompt ?? ""}`}>
      <div class="job-head">
        <p class="job-prompt">{prompt}</p>
        <p class={task.error === null ? "job-where" : "job-where error"}>
          {task.job?.state === "running" ? "Writing" : <Where task={task} />}
        </p>
        <button type="button" onClick={() => (over ? dismiss(task.key) : void cancel(task.key))}>
          {over ? "Dismiss" : "Cancel"}
        </button>
      </div>
      <ol>
        {task.job?.answers.map((answer) => (
          <li key={answer.index} aria-busy={!over}>
            <p class="written">
              <span class="written-prompt">{prompt}</span>
              {answer.text}
            </p>
            <div class="answer-foot">
              <span class="figure">
                seed {answer.seed}
                {answer.finish === "length" && ", cut at its length"}
              </span>
              {over && answer.text !== "" && <AnswerButtons prompt={prompt ?? ""} text={answer.text} />}
            </div>
          </li>
        ))}
      </ol>
    </section>
  );
}

function AnswerButtons({ prompt, text }: { prompt: string; text: string }) {
  const [copied, setCopied] = useState(false);
  // A beginning like "river:" is an order to the model, no part of the sentence.
  const sentence = (prompt.trimEnd().endsWith(":") ? text : prompt + text).trim();
  return (
    <>
      {/* Browsers have a clipboard for localhost and https alone. */}
      {isSecureContext && (
        <button
          type="button"
          class="link"
          onClick={() =>
            void navigator.clipboard.writeText(sentence).then(
              () => setCopied(true),
              () => undefined,
            )
          }
        >
          {copied ? "Copied" : "Copy"}
        </button>
      )}
      <button
        type="button"
        class="link"
        onClick={() => {
          setPicture({ prompt: sentence });
          go("pictures");
        }}
      >
        Draw this
      </button>
    </>
  );
}
