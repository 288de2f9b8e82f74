//! What the numbers of a band measure, as GDAL writes it: a scale and an offset.

/// What a band's numbers stand for: `scale * number + offset`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Units {
    /// What a step of one number is.
    pub scale: f64,
    /// What the number 0 is.
    pub offset: f64,
}

impl Units {
    /// Numbers that stand for themselves.
    pub const PLAIN: Self = Self { scale: 1.0, offset: 0.0 };

    /// The items of `GDAL_METADATA` that say so of bands in their order; nothing where none of them says anything.
    pub(super) fn items(bands: &[Self]) -> String {
        let item = |name: &str, band: usize, number: f64| {
            let role = name.to_lowercase();
            format!("<Item name=\"{name}\" sample=\"{band}\" role=\"{role}\">{number:?}</Item>")
        };
        let items = bands.iter().enumerate().filter(|(_, units)| **units != Self::PLAIN);
        items
            .map(|(band, units)| {
                item("OFFSET", band, units.offset) + &item("SCALE", band, units.scale)
            })
            .collect()
    }

    /// Of so many bands, by the items of `GDAL_METADATA`: their attributes and texts. Empty where nothing is said.
    ///
    /// # Errors
    /// What is said that is no number, or a scale of 0.
    pub(super) fn read<'a>(
        items: impl Iterator<Item = (&'a str, &'a str)>,
        bands: usize,
    ) -> Result<Vec<Self>, String> {
        let mut units = vec![Self::PLAIN; bands];
        for (attributes, text) in items {
            let role = attribute(attributes, "role");
            let Some(role @ ("scale" | "offset")) = role else { continue };
            let band = attribute(attributes, "sample").and_then(|band| band.parse::<usize>().ok());
            let Some(own) = band.and_then(|band| units.get_mut(band)) else { continue };
            let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            match (role, number) {
                ("scale", Some(number)) if number != 0.0 => own.scale = number,
                ("offset", Some(number)) => own.offset = number,
                _ => return Err(format!("a band's {role} of {text:?}")),
            }
        }
        let says = units.iter().any(|units| *units != Self::PLAIN);
        Ok(if says { units } else { Vec::new() })
    }
}

/// The items of GDAL's XML: attributes and text of each.
pub(super) fn items(xml: &str) -> impl Iterator<Item = (&str, &str)> {
    fn item(item: &str) -> Option<(&str, &str)> {
        let (attributes, rest) = item.split_once('>')?;
        Some((attributes, rest.split_once("</Item>")?.0))
    }
    xml.split("<Item").skip(1).filter_map(item)
}

/// An attribute of an element, by what stands between its name and `>`.
pub(super) fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let parts: Vec<&str> = attributes.split('"').collect();
    let pairs = parts.chunks_exact(2);
    pairs
        .map(|pair| (pair[0].trim().trim_end_matches('=').trim_end(), pair[1]))
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bands = [
            Units { scale: 1e-4, offset: -0.1 },
            Units::PLAIN,
            Units { scale: 1.0 / 2900.0, offset: -1e-300 },
        ];
        let text = Units::items(&bands);
        let read = |text: &str, bands| Units::read(items(text), bands);
        assert_eq!(read(&text, 3).unwrap(), bands);
        // Of bands that are not there nothing is said.
        assert_eq!(read(&text, 1).unwrap(), bands[..1]);
        assert_eq!(read(&Units::items(&[Units::PLAIN; 2]), 2).unwrap(), []);
        // As other programs may order it; other items are none.
        let other = "<Item role = \"scale\"  sample = \"1\" name=\"SCALE\"> 2.5e-1 </Item>\
                     <Item name=\"SCALE\">7</Item><Item name=\"role\" sample=\"0\">scale</Item>";
        assert_eq!(read(other, 2).unwrap(), [Units::PLAIN, Units { scale: 0.25, offset: 0.0 }]);
        for (role, text) in [("scale", "0"), ("scale", "x"), ("offset", "nan"), ("scale", "inf")] {
            let item = format!("<Item name=\"X\" sample=\"0\" role=\"{role}\">{text}</Item>");
            let error = read(&item, 1).unwrap_err();
            assert!(error.contains(role) && error.contains(text), "{error}");
        }
    }
}
