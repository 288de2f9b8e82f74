//! What the keys of an adapter's file name: diffusers', its older ones', peft's and kohya's.

/// The parts of a model that adapters change, as diffusers' folders and keys call them.
pub(crate) const PARTS: [&str; 3] = ["unet", "text_encoder", "text_encoder_2"];

/// What one key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The part, if the key says: peft's do not.
    pub part: Option<&'static str>,
    pub layer: Layer,
    pub role: Role,
}

/// The layer that is adapted, without `.weight` and without the `text_model.` that today's files lack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Layer {
    /// `mid_block.attentions.0.proj_in`
    Dotted(String),
    /// kohya's `mid_block_attentions_0_proj_in`, which does not tell dots from underscores.
    Flat(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A [r, inputs]
    Down,
    /// B [outputs, r]
    Up,
    /// The number that the product is multiplied by, over r.
    Alpha,
}

/// kohya's beginnings of keys.
const FLAT: [(&str, &str); 4] = [
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
];

/// Ends of kohya's keys.
const FLAT_ROLES: [(&str, Role); 3] =
    [("lora_down.weight", Role::Down), ("lora_up.weight", Role::Up), ("alpha", Role::Alpha)];

/// Ends of all others' keys.
const ROLES: [(&str, Role); 11] = [
    // peft, and diffusers since 0.22
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    // diffusers before
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

impl Key {
    /// `None`: the key is of no convention.
    pub fn parse(key: &str) -> Option<Self> {
        for (prefix, part) in FLAT {
            if let Some((layer, end)) = key.strip_prefix(prefix).and_then(|key| key.split_once('.'))
            {
                let role = FLAT_ROLES.iter().find(|(name, _)| *name == end)?.1;
                let layer = layer.strip_prefix("text_model_").unwrap_or(layer);
                return Some(Self { part: Some(part), layer: Layer::Flat(layer.into()), role });
            }
        }
        let key = key.strip_prefix("base_model.model.").unwrap_or(key);
        let of_part =
            |&part: &&'static str| Some((part, key.strip_prefix(part)?.strip_prefix('.')?));
        let (part, key) = match PARTS.iter().find_map(of_part) {
            Some((part, rest)) => (Some(part), rest),
            None => (None, key),
        };
        let (layer, role) =
            ROLES.iter().find_map(|(end, role)| Some((key.strip_suffix(end)?, *role)))?;
        let layer = layer.strip_prefix("text_model.").unwrap_or(layer);
        Some(Self { part, layer: Layer::Dotted(todays(layer)), role })
    }
}

/// A layer's name of today: the attention of older files has it in `processor`, or has the UNet's names in the text
/// encoder too.
fn todays(layer: &str) -> String {
    let layer = layer.strip_suffix("_lora").unwrap_or(layer);
    let Some((parent, name)) = layer.rsplit_once('.') else { return layer.to_owned() };
    let (parent, name) = match parent.strip_suffix(".processor") {
        Some(parent) if name == "to_out" => (parent, "to_out.0"),
        Some(parent) => (parent, name),
        None if parent.ends_with(".self_attn") => match name {
            "to_q" => (parent, "q_proj"),
            "to_k" => (parent, "k_proj"),
            "to_v" => (parent, "v_proj"),
            "to_out" => (parent, "out_proj"),
            _ => (parent, name),
        },
        None => (parent, name),
    };
    format!("{parent}.{name}")
}

/// A weight's layer as kohya's keys have it.
pub(super) fn flat(layer: &str) -> String {
    layer.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_convention_name_their_layer() {
        let block = "down_blocks.0.attentions.1.transformer_blocks.0.attn1";
        let unet = Some("unet");
        let text = Some("text_encoder");
        let (down, up, alpha) = (Role::Down, Role::Up, Role::Alpha);
        for (key, part, layer, role) in [
            (format!("unet.{block}.to_q.lora_A.weight"), unet, format!("{block}.to_q"), down),
            (format!("unet.{block}.to_q.lora_B.weight"), unet, format!("{block}.to_q"), up),
            (format!("unet.{block}.to_q.alpha"), unet, format!("{block}.to_q"), alpha),
            (
                format!("unet.{block}.processor.to_k_lora.down.weight"),
                unet,
                format!("{block}.to_k"),
                down,
            ),
            (
                format!("{block}.processor.to_out_lora.up.weight"),
                None,
                format!("{block}.to_out.0"),
                up,
            ),
            (format!("unet.{block}.to_out.0.lora.up.weight"), unet, format!("{block}.to_out.0"), up),
            (
                format!("base_model.model.{block}.to_v.lora_A.weight"),
                None,
                format!("{block}.to_v"),
                down,
            ),
            (
                "text_encoder.text_model.encoder.layers.3.self_attn.k_proj.lora_linear_layer.up.weight".into(),
                text,
                "encoder.layers.3.self_attn.k_proj".into(),
                up,
            ),
            (
                "text_encoder.text_model.encoder.layers.3.self_attn.to_out_lora.down.weight".into(),
                text,
                "encoder.layers.3.self_attn.out_proj".into(),
                down,
            ),
            (
                "text_encoder_2.text_model.encoder.layers.31.mlp.fc2.lora_A.weight".into(),
                Some("text_encoder_2"),
                "encoder.layers.31.mlp.fc2".into(),
                down,
            ),
        ] {
            let expected = Key { part, layer: Layer::Dotted(layer), role };
            assert_eq!(Key::parse(&key), Some(expected), "{key}");
        }
        for (key, part, layer, role) in [
            (
                "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
                unet,
                "mid_block_attentions_0_proj_in",
                down,
            ),
            ("lora_unet_conv_in.alpha", unet, "conv_in", alpha),
            (
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
                Some("text_encoder_2"),
                "encoder_layers_0_mlp_fc1",
                up,
            ),
            (
                "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
                text,
                "encoder_layers_0_mlp_fc1",
                up,
            ),
        ] {
            let expected = Key { part, layer: Layer::Flat(layer.into()), role };
            assert_eq!(Key::parse(key), Some(expected), "{key}");
        }
    }

    #[test]
    fn what_is_no_plain_adapter_is_of_no_convention() {
        for key in [
            "lora_unet_conv_in.hada_w1_a",
            "lora_unet_conv_in.lora_mid.weight",
            "lora_unet_conv_in.dora_scale",
            "unet.conv_in.lora_magnitude_vector",
            "unet.conv_in.lora_B.bias",
            "unet.conv_in.weight",
            "unet.conv_in.down.weight",
            "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha.x",
            "",
        ] {
            assert_eq!(Key::parse(key), None, "{key}");
        }
    }
}
