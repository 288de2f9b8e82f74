//! A decoder over the slots of its cache. On a GPU a token of each is one captured graph, launched again and again: where the
//! sequences end stands in the device's memory, and the graph itself counts on.

use std::collections::VecDeque;

use crate::error::Result;
use crate::models::decoder::{Cache, Decoder};
use crate::pipeline::evaluation::graphs_are_wanted;
use crate::tensor::cuda::Graph;
use crate::tensor::{DType, Device, Tensor, tape};

/// Graphs that are kept. Each has memory for the scores of its sequences.
const STEPS: usize = 4;

/// What is on its way.
pub(super) struct Decoding<'m> {
    decoder: &'m Decoder,
    cache: Cache,
    /// Steps of the first slots, by the number of these, over the cache as it lies; the one taken last comes first.
    steps: VecDeque<Step>,
    graphs_are_wanted: fn() -> bool,
}

/// A token more of each sequence.
struct Step {
    /// [B, 1], i64
    ids: Tensor,
    /// Gives scores [B, 1, V].
    graph: Graph<Tensor>,
}

impl<'m> Decoding<'m> {
    /// Arguments and errors as of [`Decoder::cache`].
    pub(super) fn new(decoder: &'m Decoder, slots: usize, capacity: usize) -> Result<Self> {
        let cache = decoder.cache(slots, capacity)?;
        Ok(Self { decoder, cache, steps: VecDeque::new(), graphs_are_wanted })
    }

    /// What has been computed.
    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Likewise, to empty slots and move them.
    pub(super) fn cache_mut(&mut self) -> &mut Cache {
        &mut self.cache
    }

    /// Gives `ids` [B, T], i64 on the CPU, to the slots from `first` on. Returns the scores of what comes next, B times V of
    /// them; to read those is all that a GPU is waited for.
    ///
    /// # Errors
    /// As [`Decoder::extend`].
    pub(super) fn extend(&mut self, ids: &Tensor, first: usize) -> Result<Vec<f32>> {
        let (b, t) = ids.dims2()?;
        let Self { decoder, cache, steps, .. } = self;
        if cache.must_grow(first, b, t)? {
            // They hold the memory where keys and values have lain.
            steps.clear();
        }
        let is_step = (first, t) == (0, 1);
        if decoder.device() == Device::Cpu {
            // On a thread of those that share out work, which need not be woken for each operation then.
            let work = || scores(decoder, &decoder.extend(ids, cache, first)?)?.to_vec();
            return rayon::scope(|_| tape::no_grad(work));
        }
        let scores = tape::no_grad(|| {
            if !is_step || !(self.graphs_are_wanted)() {
                return scores(decoder, &decoder.extend(ids, cache, first)?);
            }
            cache.extend(first, b, t, |cache| {
                let known = steps.iter().position(|step| step.ids.dim(0) == b);
                let mut step = match known.and_then(|i| steps.remove(i)) {
                    Some(step) => step,
                    None => Step::new(decoder, cache, b)?,
                };
                let scores = step.make(ids);
                steps.push_front(step);
                steps.truncate(STEPS);
                scores
            })
        })?;
        scores.to_vec()
    }
}

impl Step {
    fn new(decoder: &Decoder, cache: &mut Cache, batch: usize) -> Result<Self> {
        let device = decoder.device();
        let ids = Tensor::uninit([batch, 1], DType::I64, device)?;
        let graph =
            Graph::capture(device, || scores(decoder, &decoder.extend_in_place(&ids, cache, 0)?))?;
        Ok(Self { ids, graph })
    }

    /// With these ids; the scores last until the next.
    fn make(&mut self, ids: &Tensor) -> Result<Tensor> {
        self.ids.assign(ids)?;
        self.graph.launch().cloned()
    }
}

/// Hidden states [B, T, C] -> scores [B, 1, V], f32, of what follows the last token.
fn scores(decoder: &Decoder, hidden: &Tensor) -> Result<Tensor> {
    let last = hidden.narrow(1, hidden.dim(1) - 1, 1)?.contiguous()?; // [B, 1, C]
    decoder.logits(&last)?.to_dtype(DType::F32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use serde_json::{Value, json};

    use super::*;
    use crate::io::config::Config;
    use crate::models::decoder::DecoderConfig;
    use crate::nn::Params;
    use crate::ops::elementwise::scale;
    use crate::ops::testing::random;
    use crate::tensor::cuda;

    const VOCABULARY: usize = 41;

    /// Learned positions; and rotary ones, with grouped queries. Of a width and a context that are no multiples of 8.
    fn families() -> [Value; 2] {
        let qwen3 = json!({
            "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": 20, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 28,
            "max_position_embeddings": 140, "tie_word_embeddings": false,
        });
        [DecoderConfig::gpt2_json(VOCABULARY, 140, 20, 2, 2), qwen3]
    }

    /// A model with weights that follow from their names.
    fn decoder(config: &Value, dtype: DType, device: Device) -> Decoder {
        let config = Config::from_value("config.json", config.clone()).unwrap();
        let config = DecoderConfig::read(&config).unwrap();
        let initial = |name: &str, shape: &[usize]| {
            scale(&random(shape, u64::from(crc32fast::hash(name.as_bytes()))), 0.3)
        };
        Decoder::load(config, &Params::initial(initial, dtype, device)).unwrap()
    }

    /// Scores of what follows the first n tokens of sequence i, by (i, n).
    type Found = BTreeMap<(usize, usize), Vec<f32>>;

    /// Sequences whose tokens are given.
    struct Company<'m> {
        decoding: Decoding<'m>,
        /// Which sequence is in each slot.
        slots: Vec<usize>,
        found: Found,
    }

    impl<'m> Company<'m> {
        fn new(decoder: &'m Decoder, slots: usize, graphs_are_wanted: fn() -> bool) -> Self {
            let decoding =
                Decoding { graphs_are_wanted, ..Decoding::new(decoder, slots, 140).unwrap() };
            Self { decoding, slots: Vec::new(), found: Found::new() }
        }

        /// Sequence `i` joins with so many tokens.
        fn join(&mut self, i: usize, tokens: usize) {
            let slot = self.slots.len();
            self.slots.push(i);
            self.decoding.cache_mut().truncate(slot, 0);
            self.extend(slot, tokens);
        }

        /// The sequence in a slot ends.
        fn leave(&mut self, slot: usize) {
            self.decoding.cache_mut().move_slot(self.slots.len() - 1, slot).unwrap();
            self.slots.swap_remove(slot);
        }

        /// All get so many tokens more, one at a time.
        fn step(&mut self, times: usize) {
            (0..times).for_each(|_| self.extend(0, 1));
        }

        fn extend(&mut self, first: usize, tokens: usize) {
            let batch = self.slots.len() - first;
            let lengths: Vec<usize> =
                (0..batch).map(|b| self.decoding.cache().length(first + b)).collect();
            let token = |i: usize, at: usize| ((i * 31 + at * at * 7 + at) % VOCABULARY) as i64;
            let ids = self.slots[first..].iter().zip(&lengths);
            let ids = ids.flat_map(|(&i, &n)| (n..n + tokens).map(move |at| token(i, at)));
            let ids = Tensor::from_vec(ids.collect(), [batch, tokens]).unwrap();
            let scores = self.decoding.extend(&ids, first).unwrap();
            assert_eq!(scores.len(), batch * VOCABULARY);
            for (scores, (i, n)) in
                scores.chunks(VOCABULARY).zip(self.slots[first..].iter().zip(&lengths))
            {
                assert!(scores.iter().all(|x| x.is_finite()), "sequence {i}, behind {n}");
                self.found.insert((*i, n + tokens), scores.to_vec());
            }
        }
    }

    /// Tokens that each of seven sequences begins with: the longest soon needs more rows than a cache begins with.
    const PROMPTS: [usize; 7] = [3, 60, 1, 17, 9, 5, 30];

    /// Sequences come, go on beyond what the cache has room for at first, leave, and come again.
    fn company(decoder: &Decoder, graphs_are_wanted: fn() -> bool) -> Found {
        let mut all = Company::new(decoder, 9, graphs_are_wanted);
        PROMPTS[..3].iter().enumerate().for_each(|(i, &tokens)| all.join(i, tokens));
        all.step(2);
        PROMPTS[3..].iter().enumerate().for_each(|(i, &tokens)| all.join(3 + i, tokens));
        // The fourth step from here moves keys and values to where there is more room.
        all.step(5);
        all.leave(2);
        all.step(2);
        // One of the company's earlier sizes, with another in it; its prompt moves keys and values once more.
        all.join(7, 130);
        all.step(2);
        while all.slots.len() > 1 {
            all.leave(0);
        }
        all.step(2);
        all.found
    }

    #[test]
    fn steps_by_graph_have_the_bits_of_launches() {
        if !cuda::is_there_for_tests() {
            return;
        }
        let [gpt2, qwen3] = families();
        for (config, dtype) in [(&gpt2, DType::F32), (&qwen3, DType::F32), (&qwen3, DType::BF16)] {
            let on_gpu = decoder(config, dtype, Device::Cuda(0));
            let what = format!("{} in {dtype}", config["model_type"]);
            let [launched, replayed] = [|| false, || true].map(|wanted| company(&on_gpu, wanted));
            assert!(launched == replayed, "{what}: other bits");
            // Each alone.
            for i in [1, 2, 6] {
                let mut alone = Company::new(&on_gpu, 1, || true);
                alone.join(i, PROMPTS[i]);
                alone.step(4);
                for (at, scores) in alone.found {
                    assert!(replayed[&at] == scores, "{what}: other bits at {at:?} alone");
                }
            }
            if dtype != DType::F32 {
                continue;
            }
            let on_cpu = company(&decoder(config, dtype, Device::Cpu), || true);
            assert!(on_cpu.keys().eq(replayed.keys()));
            for (at, expected) in on_cpu {
                let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                for (ours, theirs) in replayed[&at].iter().zip(&expected) {
                    // Sums of less than a hundred terms in another order, through two blocks.
                    let error = (ours - theirs).abs() / largest;
                    assert!(error <= 1e-5, "{what}: {ours} instead of {theirs} at {at:?}");
                }
            }
        }
    }

    /// From the first step of a company on, a step is what sends ids, a launch, and what reads scores: no memory is asked for,
    /// and the device is waited for once.
    #[test]
    fn a_step_is_a_launch() {
        const TEST: &str = "pipeline::language::decoding::tests::a_step_is_a_launch";
        const CALLS: &str = "VGPU_CALLS";
        let Some(file) = std::env::var_os(CALLS) else {
            let is_virtual = |devices: Vec<cuda::Properties>| devices[0].is_virtual();
            if !cuda::is_there_for_tests() || !cuda::devices().is_ok_and(is_virtual) {
                return;
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", TEST, "--nocapture"]).env(CALLS, file.path());
            child.envs([("NADIR_POOL", "on"), ("NADIR_GRAPH", "on"), ("NADIR_SENTINELS", "off")]);
            let output = child.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.contains("1 passed"), "{said}{error}");
            return;
        };
        for config in families() {
            for batch in [1, 7] {
                let decoder = decoder(&config, DType::F32, Device::Cuda(0));
                let mut all = Company::new(&decoder, batch, graphs_are_wanted);
                PROMPTS[..batch]
                    .iter()
                    .enumerate()
                    .for_each(|(i, &tokens)| all.join(i, tokens.min(40)));
                all.step(1);
                let noted = || std::fs::read_to_string(&file).unwrap();
                let before = noted().len();
                all.step(9);
                let mut counts = BTreeMap::<&str, usize>::new();
                let text = noted();
                // Which context is the thread's is asked before every call.
                for name in text[before..].lines().filter(|name| !name.starts_with("cuCtx")) {
                    *counts.entry(name).or_default() += 1;
                }
                println!("{}, {batch}: {counts:?}", config["model_type"]);
                let expected = [
                    // Whether the ids before have left; that both copies are done.
                    ("cuEventQuery", 1),
                    ("cuEventRecord", 2),
                    ("cuEventSynchronize", 1),
                    ("cuGraphLaunch", 1),
                    ("cuMemcpyDtoHAsync_v2", 1),
                    ("cuMemcpyHtoDAsync_v2", 1),
                ];
                let expected = expected.map(|(name, times)| (name, 9 * times));
                assert_eq!(counts.into_iter().collect::<Vec<_>>(), expected);
            }
        }
    }
}
