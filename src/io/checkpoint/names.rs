//! What modules are called in original checkpoints, beside the names that diffusers and transformers give them.
//!
//! Reference: diffusers, `loaders/single_file_utils.py` (`convert_ldm_unet_checkpoint` and the like).

use std::collections::BTreeMap;

/// What a tensor of today's is of an original one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All of it.
    Whole,
    /// This third of its rows: one matrix is of three.
    Third(usize),
    /// Its transpose: what is multiplied from the other side.
    Turned,
}

/// A module's other name, and what of it there is.
type Other = (String, Cut);

/// Both names of every module of a network.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Before all original names.
    root: &'static str,
    /// Original -> current. Empty where the two are the same.
    current: BTreeMap<String, Vec<Other>>,
    /// Current -> original.
    original: BTreeMap<String, Other>,
}

/// What a UNet's blocks are numbered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// Levels of resolution.
    pub levels: usize,
    /// Residual blocks of each level on the way down.
    pub layers: usize,
    /// Whether the levels have attention on the way up, the coarsest first.
    pub up_attention: Vec<bool>,
}

impl Blocks {
    /// Those of a UNet whose tensors have these names of today.
    pub fn of(names: &[String]) -> Self {
        let has = |root: String| names.iter().any(|name| name.starts_with(&root));
        let count = |root: &str| (0..).take_while(|i| has(format!("{root}{i}."))).count();
        let levels = count("down_blocks.");
        let attends = |level: usize| has(format!("up_blocks.{level}.attentions."));
        Self {
            levels,
            layers: count("down_blocks.0.resnets."),
            up_attention: (0..levels).map(attends).collect(),
        }
    }
}

/// Layers of a residual block of the UNet: original, current.
const UNET_RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// And of the autoencoder.
const VAE_RESNET: [(&str, &str); 5] = [
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
];

/// The autoencoder's attention.
const VAE_ATTENTION: [(&str, &str); 5] =
    [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")];

/// A layer of OpenCLIP.
const OPEN_CLIP_LAYER: [(&str, &str); 5] = [
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
];

impl Names {
    /// A network whose names are the same but for `root` before them.
    pub fn same(root: &'static str) -> Self {
        Self { root, ..Self::default() }
    }

    /// A UNet, which may be told labels of a picture.
    pub fn unet(root: &'static str, blocks: &Blocks) -> Self {
        Self::told(root, blocks, "class_embedding")
    }

    /// A UNet of Stable Diffusion XL, which is told sizes and its prompt as a whole.
    pub fn unet_of_xl(root: &'static str, blocks: &Blocks) -> Self {
        Self::told(root, blocks, "add_embedding")
    }

    fn told(root: &'static str, blocks: &Blocks, embedding: &str) -> Self {
        let mut names = Self::way_down(root, blocks);
        for (original, current) in [("out.0", "conv_norm_out"), ("out.2", "conv_out")] {
            names.add(original, current);
        }
        names.label(embedding);
        let each = blocks.layers + 1;
        for (block, &attends) in blocks.up_attention.iter().enumerate() {
            let up = format!("up_blocks.{block}");
            for layer in 0..each {
                let at = format!("output_blocks.{}", block * each + layer);
                names.unet_resnet(&format!("{at}.0"), &format!("{up}.resnets.{layer}"));
                if attends {
                    names.add(format!("{at}.1"), format!("{up}.attentions.{layer}"));
                }
            }
            // It stands behind the attention of the block's last layer.
            let last = format!("output_blocks.{}", block * each + blocks.layers);
            let upsampler = format!("{last}.{}.conv", 1 + usize::from(attends));
            names.add(upsampler, format!("{up}.upsamplers.0.conv"));
        }
        names
    }

    /// A ControlNet, whose way to the condition has `hints` convolutions between its first and its last. Only XL's is told labels.
    pub fn controlnet(root: &'static str, blocks: &Blocks, hints: usize) -> Self {
        let mut names = Self::way_down(root, blocks);
        for i in 0..blocks.levels * (blocks.layers + 1) {
            names.add(format!("zero_convs.{i}.0"), format!("controlnet_down_blocks.{i}"));
        }
        names.add("middle_block_out.0", "controlnet_mid_block");
        let hint = |i| format!("input_hint_block.{}", 2 * i);
        names.add(hint(0), "controlnet_cond_embedding.conv_in");
        for i in 0..hints {
            names.add(hint(i + 1), format!("controlnet_cond_embedding.blocks.{i}"));
        }
        names.add(hint(hints + 1), "controlnet_cond_embedding.conv_out");
        names.label("add_embedding");
        names
    }

    /// What a UNet and a ControlNet share.
    fn way_down(root: &'static str, blocks: &Blocks) -> Self {
        let mut names = Self::same(root);
        for (original, current) in [
            ("time_embed.0", "time_embedding.linear_1"),
            ("time_embed.2", "time_embedding.linear_2"),
            ("input_blocks.0.0", "conv_in"),
            ("middle_block.1", "mid_block.attentions.0"),
        ] {
            names.add(original, current);
        }
        for block in 0..blocks.levels {
            let down = format!("down_blocks.{block}");
            for layer in 0..blocks.layers {
                let at = format!("input_blocks.{}", 1 + block * (blocks.layers + 1) + layer);
                names.unet_resnet(&format!("{at}.0"), &format!("{down}.resnets.{layer}"));
                names.add(format!("{at}.1"), format!("{down}.attentions.{layer}"));
            }
            let downsampler = format!("input_blocks.{}.0.op", (block + 1) * (blocks.layers + 1));
            names.add(downsampler, format!("{down}.downsamplers.0.conv"));
        }
        names.unet_resnet("middle_block.0", "mid_block.resnets.0");
        names.unet_resnet("middle_block.2", "mid_block.resnets.1");
        names
    }

    /// An autoencoder of so many levels, with `layers` residual blocks each in its encoder and one more in its decoder.
    pub fn vae(root: &'static str, levels: usize, layers: usize) -> Self {
        let mut names = Self::same(root);
        for conv in ["quant_conv", "post_quant_conv"] {
            names.add(conv, conv);
        }
        for (half, way, sampler, layers) in
            [("encoder", "down", "downsample", layers), ("decoder", "up", "upsample", layers + 1)]
        {
            for (original, current) in
                [("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")]
            {
                names.add(format!("{half}.{original}"), format!("{half}.{current}"));
            }
            for i in 0..2 {
                let block = format!("{half}.mid.block_{}", i + 1);
                names.inner(&block, &format!("{half}.mid_block.resnets.{i}"), &VAE_RESNET);
            }
            let attention = format!("{half}.mid_block.attentions.0");
            names.inner(&format!("{half}.mid.attn_1"), &attention, &VAE_ATTENTION);
            for level in 0..levels {
                // The original counts levels from the finest on both ways.
                let block = if way == "up" { levels - 1 - level } else { level };
                let (original, current) =
                    (format!("{half}.{way}.{level}"), format!("{half}.{way}_blocks.{block}"));
                for layer in 0..layers {
                    let resnet = format!("{current}.resnets.{layer}");
                    names.inner(&format!("{original}.block.{layer}"), &resnet, &VAE_RESNET);
                }
                let sampled = format!("{current}.{sampler}rs.0.conv");
                names.add(format!("{original}.{sampler}.conv"), sampled);
            }
        }
        names
    }

    /// OpenCLIP's text encoder of so many layers.
    pub fn open_clip(root: &'static str, layers: usize) -> Self {
        let mut names = Self::same(root);
        for (original, current) in [
            ("positional_embedding", "embeddings.position_embedding.weight"),
            ("token_embedding", "embeddings.token_embedding"),
            ("ln_final", "final_layer_norm"),
        ] {
            names.add(original, current);
        }
        for layer in 0..layers {
            let original = format!("transformer.resblocks.{layer}");
            let current = format!("encoder.layers.{layer}");
            names.inner(&original, &current, &OPEN_CLIP_LAYER);
            for kind in ["weight", "bias"] {
                for (third, part) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
                    names.add_cut(
                        format!("{original}.attn.in_proj_{kind}"),
                        format!("{current}.self_attn.{part}.{kind}"),
                        Cut::Third(third),
                    );
                }
            }
        }
        names
    }

    /// The same with what tells a text as a whole.
    pub fn open_clip_projected(root: &'static str, layers: usize) -> Self {
        let mut names = Self::open_clip(root, layers);
        let (original, current) = ("text_projection", "text_projection.weight");
        names.add_cut(original.to_owned(), current.to_owned(), Cut::Turned);
        names
    }

    /// What is told beside the time.
    fn label(&mut self, embedding: &str) {
        self.add("label_emb.0.0", format!("{embedding}.linear_1"));
        self.add("label_emb.0.2", format!("{embedding}.linear_2"));
    }

    fn unet_resnet(&mut self, original: &str, current: &str) {
        self.inner(original, current, &UNET_RESNET);
    }

    fn inner(&mut self, original: &str, current: &str, layers: &[(&str, &str)]) {
        for (theirs, ours) in layers {
            self.add(format!("{original}.{theirs}"), format!("{current}.{ours}"));
        }
    }

    fn add(&mut self, original: impl Into<String>, current: impl Into<String>) {
        self.add_cut(original.into(), current.into(), Cut::Whole);
    }

    fn add_cut(&mut self, original: String, current: String, cut: Cut) {
        self.original.insert(current.clone(), (original.clone(), cut));
        self.current.entry(original).or_default().push((current, cut));
    }

    /// The current names of what an original file calls `name`; of a module that is not known its own; of another network's
    /// none.
    pub fn current(&self, name: &str) -> Vec<Other> {
        let Some(name) = name.strip_prefix(self.root) else { return Vec::new() };
        match longest(&self.current, name) {
            Some((found, rest)) => {
                found.iter().map(|(module, cut)| (format!("{module}{rest}"), *cut)).collect()
            }
            None => vec![(name.to_owned(), Cut::Whole)],
        }
    }

    /// What an original file calls `name`; `None` for a module that it has no name for.
    pub fn original(&self, name: &str) -> Option<Other> {
        if self.original.is_empty() {
            return Some((format!("{}{name}", self.root), Cut::Whole));
        }
        let ((module, cut), rest) = longest(&self.original, name)?;
        Some((format!("{}{module}{rest}", self.root), *cut))
    }
}

/// The module of a tensor, the innermost that is known, and what follows it.
fn longest<'a, T>(modules: &'a BTreeMap<String, T>, name: &'a str) -> Option<(&'a T, &'a str)> {
    let ends = std::iter::once(name.len()).chain(name.rmatch_indices('.').map(|(dot, _)| dot));
    ends.into_iter().find_map(|end| Some((modules.get(&name[..end])?, &name[end..])))
}
