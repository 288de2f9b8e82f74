//! From the coordinates of a reference system to degrees on the globe.
//!
//! By proj4rs and the EPSG data set's definitions in PROJ.4's terms; no grid of datum shifts is known to it.

use proj4rs::Proj;
use proj4rs::transform::transform;

use super::caught;
use crate::error::{Error, Result};

/// A reference system that can be computed in.
pub struct Projection {
    own: Proj,
    globe: Proj,
}

impl Projection {
    /// The system of an EPSG code.
    ///
    /// # Errors
    /// `Argument`: there is no such system, or it is one that cannot be computed in.
    pub fn from_epsg(epsg: u32) -> Result<Self> {
        let wrong = || {
            let expected = "the EPSG code of a reference system that is known here, such as 4326, 3857 or 32632";
            Error::argument("epsg", epsg, expected)
        };
        let code = u16::try_from(epsg).map_err(|_| wrong())?;
        let own = caught(|| Proj::from_epsg_code(code)).ok().and_then(|own| own.ok());
        let globe = Proj::from_proj_string("+proj=longlat +datum=WGS84 +no_defs");
        match (own, globe) {
            (Some(own), Ok(globe)) if own.is_latlong() || own.has_inverse() => {
                Ok(Self { own, globe })
            }
            _ => Err(wrong()),
        }
    }

    /// Longitude and latitude in degrees, on WGS 84, of x (or degrees east) and y (or degrees north); none of what is off the
    /// globe.
    pub fn degrees(&self, [x, y]: [f64; 2]) -> Option<[f64; 2]> {
        let mut point = match self.own.is_latlong() {
            true => (x.to_radians(), y.to_radians(), 0.0),
            false => (x, y, 0.0),
        };
        let done = caught(|| transform(&self.own, &self.globe, &mut point)).ok()?;
        done.ok()?;
        let degrees = [point.0.to_degrees(), point.1.to_degrees()];
        degrees.iter().all(|x| x.is_finite()).then_some(degrees)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GDAL 3.6 says: `echo 485900 5205000 | gdaltransform -s_srs EPSG:32614 -t_srs EPSG:4326 -output_xy`, and so on. Within
    /// a centimetre; within a metre where datums differ, whose shifts are known to that.
    #[test]
    fn coordinates_are_those_of_gdal() {
        #[rustfmt::skip]
        let cases = [
            (32614, [485_900.0, 5_205_000.0], [-99.1854582946906, 46.9983730311761], 1e-7),
            (32733, [261_000.5, 6_243_000.25], [12.414527402825, -33.9263410358946], 1e-7),
            (3857, [261_600.0, 6_250_000.0], [2.34999278325667, 48.8532643413997], 1e-7),
            (3035, [4_321_000.0, 3_210_000.0], [10.0, 52.0], 1e-7),
            (2154, [652_000.0, 6_862_000.0], [2.34581195868068, 48.8562481409627], 1e-7),
            (31370, [150_000.0, 170_000.0], [4.36875214090419, 50.8404112831179], 1e-5),
            (4326, [-99.2, 46.99], [-99.2, 46.99], 1e-9),
        ];
        for (epsg, place, expected, tolerance) in cases {
            let found = Projection::from_epsg(epsg).unwrap().degrees(place).unwrap();
            let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance);
            assert!(near, "{epsg}: {found:?} {expected:?}");
        }
    }

    #[test]
    fn systems_that_nobody_knows_are_refused() {
        for epsg in [0, 1024, 65536, u32::MAX] {
            let error = Projection::from_epsg(epsg).err().unwrap().to_string();
            assert!(error.contains("epsg") && error.contains(&epsg.to_string()), "{error}");
        }
        let far = Projection::from_epsg(32614).unwrap().degrees([f64::NAN, 0.0]);
        assert_eq!(far, None);
    }
}
