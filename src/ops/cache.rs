//! The cache of a decoder's keys or values, which stays where it is: writing to it, and where it ends. Kernels:
//! `kernels/cache.cu`.

use bytemuck::NoUninit;

use super::attention::dense;
use super::elementwise::require_dtype;
use super::kernels::{LaunchConfig, kernels, span, to_u32};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Tensor, tape};

kernels! {
    /// A block a token.
    fn append(cache: Out, x: In, lengths: In<u32>, dims: AppendDims);
    /// A block an entry.
    fn advance(lengths: Out<u32>, positions: Out<u32>, starts: Out<u32>, ends: Out<u32>, dims: AdvanceDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct AppendDims {
    strides: [u64; 3],
    first: u64,
    tokens: u32,
    heads: u32,
    channels: u32,
    capacity: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct AdvanceDims {
    first: u32,
    tokens: u32,
}

const OP: &str = "cache append";

/// Writes T new keys or values of B entries into `cache`, in place: row t of entry b to row `lengths[b] + t` of slot
/// `first + b`.
///
/// `cache` [slots, G, S, D], where a head is read as one stream, contiguous and shared with no other tensor, such as a view of it that still lives: make views
/// to read anew each time. `x` [B, T, G, D], a view is read as it lies; `lengths` `[B]`, u32. The cache keeps its address and
/// `lengths` are a matter of the device, so that one captured [`Graph`](crate::tensor::cuda::Graph) serves all steps.
///
/// # Errors
/// `Shape`, `DType` and `Device` when they do not fit; `Value` when the cache is shared, or a slot has no room: on a GPU, where
/// nobody looks at `lengths`, such rows are left out. `NoGradient` when one of `x` is wanted.
pub fn append(cache: &mut Tensor, first: usize, x: &Tensor, lengths: &Tensor) -> Result<()> {
    if tape::is_recording() && x.node().is_some() {
        return Err(Error::no_gradient(OP));
    }
    let &[slots, heads, capacity, channels] = cache.dims() else {
        return Err(Error::expected_shape(OP, "cache", "[slots, G, S, D]", cache.shape()));
    };
    let &[batch, tokens, _, _] = x.dims() else {
        return Err(Error::expected_shape(OP, "x", "[B, T, G, D]", x.shape()));
    };
    if x.dims()[2..] != [heads, channels] || first.checked_add(batch).is_none_or(|n| n > slots) {
        let expected = format!("[at most {slots} behind {first}, T, {heads}, {channels}]");
        return Err(Error::expected_shape(OP, "x", &expected, x.shape()));
    }
    if lengths.dims() != [batch] {
        return Err(Error::expected_shape(OP, "lengths", &format!("[{batch}]"), lengths.shape()));
    }
    require_dtype(OP, cache.dtype(), x)?;
    require_dtype(OP, DType::U32, lengths)?;
    let device = cache.device();
    if let Some(other) = [x, lengths].into_iter().find(|t| t.device() != device) {
        return Err(Error::Device { op: OP, a: device, b: other.device() });
    }
    if x.is_empty() {
        return Ok(());
    }
    let (x, lengths) = (dense(x)?, lengths.contiguous()?);
    if device != Device::Cpu {
        let dims = AppendDims {
            strides: [0, 1, 2].map(|d| x.strides()[d] as u64),
            first: first as u64,
            tokens: to_u32(OP, tokens)?,
            heads: to_u32(OP, heads)?,
            channels: to_u32(OP, channels)?,
            capacity: to_u32(OP, capacity)?,
        };
        let threads = to_u32(OP, heads * channels)?.next_multiple_of(32).min(256);
        let config = LaunchConfig::new([to_u32(OP, batch * tokens)?, 1], threads);
        return kernel::append(config, cache, &span(&x), &lengths, dims);
    }
    let lengths = lengths.as_slice::<u32>()?;
    if let Some(b) = lengths.iter().position(|&n| n as usize + tokens > capacity) {
        let message = format!(
            "slot {} has room for {capacity} tokens: {tokens} more than {} do not fit",
            first + b,
            lengths[b]
        );
        return Err(Error::value(OP, message));
    }
    let &[of_entry, of_token, of_head, _] = x.strides() else { unreachable!("as checked") };
    dispatch_float!(OP, x.dtype(), T => {
        let (from, to) = (x.as_strided_slice::<T>()?, cache.as_mut_slice::<T>()?);
        for (b, &length) in lengths.iter().enumerate() {
            for i in 0..tokens * heads {
                let (token, head) = (i / heads, i % heads);
                let row = ((first + b) * heads + head) * capacity + length as usize + token;
                let at = b * of_entry + token * of_token + head * of_head;
                to[row * channels..][..channels].copy_from_slice(&from[at..at + channels]);
            }
        }
        Ok(())
    })
}

/// Where new tokens of sequences stand; all u32.
pub struct Places {
    /// Of each token, [B, T].
    pub positions: Tensor,
    /// How many tokens the sequences have before, `[B]`.
    pub starts: Tensor,
    /// And with them.
    pub ends: Tensor,
}

/// T new tokens of B entries, which `lengths` counts from now on: that of slot `first + b` grows by T, in place.
///
/// `lengths` `[slots]`, u32, contiguous and shared with no other tensor. It is a matter of the device, so that a captured
/// [`Graph`](crate::tensor::cuda::Graph) goes on by itself.
///
/// # Errors
/// `Shape` and `DType` when they do not fit; `Value` when `lengths` is shared, or a length leaves 32 bits: on a GPU it starts
/// from 0 again then.
pub fn advance(lengths: &mut Tensor, first: usize, batch: usize, tokens: usize) -> Result<Places> {
    const OP: &str = "cache advance";
    require_dtype(OP, DType::U32, lengths)?;
    let slots = match *lengths.dims() {
        [slots] if first.checked_add(batch).is_some_and(|n| n <= slots) => slots,
        _ => {
            let expected = format!("[at least {batch} behind {first}]");
            return Err(Error::expected_shape(OP, "lengths", &expected, lengths.shape()));
        }
    };
    let device = lengths.device();
    let new = |shape: &[usize]| Tensor::uninit(shape, DType::U32, device);
    let (mut positions, mut starts, mut ends) =
        (new(&[batch, tokens])?, new(&[batch])?, new(&[batch])?);
    if device != Device::Cpu {
        to_u32(OP, slots)?;
        if batch > 0 {
            let dims = AdvanceDims { first: first as u32, tokens: to_u32(OP, tokens)? };
            let threads = dims.tokens.next_multiple_of(32).clamp(32, 256);
            let config = LaunchConfig::new([batch as u32, 1], threads);
            kernel::advance(config, lengths, &mut positions, &mut starts, &mut ends, dims)?;
        }
        return Ok(Places { positions, starts, ends });
    }
    let before = lengths.as_slice::<u32>()?[first..][..batch].to_vec();
    let after = |&n: &u32| n.checked_add(u32::try_from(tokens).ok()?);
    let after: Option<Vec<u32>> = before.iter().map(after).collect();
    let Some(after) = after else {
        return Err(Error::value(OP, format!("{tokens} tokens more are beyond 32 bits")));
    };
    lengths.as_mut_slice::<u32>()?[first..][..batch].copy_from_slice(&after);
    let all = before.iter().zip(&after).flat_map(|(&start, &end)| start..end);
    positions.as_mut_slice::<u32>()?.iter_mut().zip(all).for_each(|(to, position)| *to = position);
    starts.as_mut_slice::<u32>()?.copy_from_slice(&before);
    ends.as_mut_slice::<u32>()?.copy_from_slice(&after);
    Ok(Places { positions, starts, ends })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, devices, random, strided, values};

    #[test]
    fn rows_stand_behind_those_that_are_there() {
        let (slots, capacity, heads, channels) = (9, 11, 3, 5);
        for device in devices() {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for (first, batch, tokens) in
                    [(0, 1, 1), (2, 7, 1), (1, 7, 4), (0, 9, 11), (3, 0, 1)]
                {
                    let place = |t: Tensor| t.to_dtype(dtype).unwrap().to_device(device).unwrap();
                    let before = place(random([slots, heads, capacity, channels], 1));
                    let x = place(random([batch, tokens, heads, channels], 2));
                    let lengths: Vec<u32> =
                        (0..batch).map(|b| (b * 3 % (capacity - tokens + 1)) as u32).collect();
                    let given = Tensor::from_slice(&lengths, [batch]).unwrap();
                    let given = given.to_device(device).unwrap();
                    let mut expected = values(&before);
                    let new = values(&x);
                    for (i, &x) in new.iter().enumerate() {
                        let (c, head) = (i % channels, i / channels % heads);
                        let (t, b) = (i / channels / heads % tokens, i / channels / heads / tokens);
                        let row = lengths[b] as usize + t;
                        let slot = (first + b) * heads + head;
                        expected[(slot * capacity + row) * channels + c] = x;
                    }
                    for x in [x.clone(), if x.is_empty() { x } else { strided(&x) }] {
                        let mut cache = Tensor::zeros(*before.shape(), dtype, device).unwrap();
                        cache.assign(&before).unwrap();
                        append(&mut cache, first, &x, &given).unwrap();
                        assert!(
                            values(&cache) == expected,
                            "{dtype}, {device}, {batch} x {tokens}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_has_no_room_is_written_nowhere() {
        let before = random([3, 1, 4, 2], 1);
        let lengths = Tensor::from_slice(&[3u32, u32::MAX, 4], [3]).unwrap();
        for device in devices() {
            let mut cache = Tensor::zeros([3, 1, 4, 2], DType::F32, device).unwrap();
            cache.assign(&before).unwrap();
            let x = random([3, 2, 1, 2], 2).to_device(device).unwrap();
            let result = append(&mut cache, 0, &x, &lengths.to_device(device).unwrap());
            let mut expected = values(&before);
            if device == Device::Cpu {
                let message = result.unwrap_err().to_string();
                assert!(message.contains("slot 0") && message.contains("4 tokens"), "{message}");
            } else {
                result.unwrap();
                expected[6..8].copy_from_slice(&values(&x)[..2]);
            }
            assert_eq!(values(&cache), expected, "{device}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let mut cache = random([3, 1, 4, 2], 1);
        let before = bits(&cache);
        let lengths = Tensor::from_slice(&[0u32, 1], [2]).unwrap();
        let x = random([2, 1, 1, 2], 2);
        let shape = |result: Result<()>| assert!(matches!(result, Err(Error::Shape { .. })));
        shape(append(&mut cache, 2, &x, &lengths));
        shape(append(&mut cache, usize::MAX, &x, &lengths));
        shape(append(&mut cache, 0, &random([2, 1, 2, 2], 1), &lengths));
        shape(append(&mut cache, 0, &random([3, 1, 1, 2], 1), &lengths));
        shape(append(&mut cache, 0, &random([2, 1, 2], 1), &lengths));
        let halves = x.to_dtype(DType::F16).unwrap();
        assert!(matches!(append(&mut cache, 0, &halves, &lengths), Err(Error::DType { .. })));
        assert!(matches!(append(&mut cache, 0, &x, &random([2], 1)), Err(Error::DType { .. })));
        let wanted = append(&mut cache, 0, &x.variable(), &lengths);
        assert!(matches!(wanted, Err(Error::NoGradient { .. })));
        let view = cache.narrow(0, 0, 1).unwrap();
        assert!(matches!(append(&mut cache, 0, &x, &lengths), Err(Error::Value { .. })));
        assert_eq!(bits(&cache), before);
        drop(view);
        append(&mut cache, 0, &x, &lengths).unwrap();
    }

    #[test]
    fn lengths_grow_by_the_tokens() {
        let before: Vec<u32> = (0..9).map(|i| i * 5 % 7).collect();
        for device in devices() {
            for (first, batch, tokens) in [(0, 1, 1), (2, 7, 1), (1, 7, 300), (0, 9, 0), (4, 0, 3)]
            {
                let mut lengths =
                    Tensor::from_slice(&before, [9]).unwrap().to_device(device).unwrap();
                let places = advance(&mut lengths, first, batch, tokens).unwrap();
                let is_new = |i: usize| (first..first + batch).contains(&i);
                let after = |i: usize| before[i] as usize + if is_new(i) { tokens } else { 0 };
                let whole = |t: &Tensor| -> Vec<usize> {
                    t.to_vec::<u32>().unwrap().iter().map(|&n| n as usize).collect()
                };
                let what = format!("{device}, {batch} x {tokens} from {first} on");
                assert_eq!(whole(&lengths), (0..9).map(after).collect::<Vec<_>>(), "{what}");
                let (starts, ends) = (whole(&places.starts), whole(&places.ends));
                assert_eq!(ends, whole(&lengths)[first..][..batch], "{what}");
                assert!(
                    starts.iter().zip(&ends).all(|(start, end)| start + tokens == *end),
                    "{what}"
                );
                let positions = starts.iter().zip(&ends).flat_map(|(&start, &end)| start..end);
                assert_eq!(whole(&places.positions), positions.collect::<Vec<_>>(), "{what}");
                assert_eq!(places.positions.dims(), [batch, tokens]);
            }
        }
        let mut lengths = Tensor::from_slice(&[u32::MAX, 0], [2]).unwrap();
        assert!(matches!(advance(&mut lengths, 0, 1, 1), Err(Error::Value { .. })));
        assert!(matches!(advance(&mut lengths, 1, 2, 1), Err(Error::Shape { .. })));
        assert!(matches!(advance(&mut lengths, usize::MAX, 2, 1), Err(Error::Shape { .. })));
        assert!(matches!(advance(&mut random([2], 1), 0, 1, 1), Err(Error::DType { .. })));
        let view = lengths.narrow(0, 0, 1).unwrap();
        assert!(matches!(advance(&mut lengths, 1, 1, 1), Err(Error::Value { .. })));
        assert_eq!(view.to_vec::<u32>().unwrap(), [u32::MAX]);
    }

    /// One graph for all steps: it reads where the cache ends, and the cache, as they are when it is launched.
    #[test]
    fn a_captured_step_appends_where_lengths_say() {
        for device in devices().filter(|device| *device != Device::Cpu) {
            let mut cache = Tensor::zeros([1, 1, 4, 2], DType::F32, device).unwrap();
            let mut x = Tensor::zeros([1, 1, 1, 2], DType::F32, device).unwrap();
            let mut lengths = Tensor::zeros([1], DType::U32, device).unwrap();
            let mut graph =
                crate::tensor::cuda::Graph::capture(device, || append(&mut cache, 0, &x, &lengths))
                    .unwrap();
            for step in 0..3u32 {
                lengths.assign(&Tensor::from_slice(&[step], [1]).unwrap()).unwrap();
                let row = Tensor::full([1, 1, 1, 2], f64::from(step + 1), DType::F32, Device::Cpu);
                x.assign(&row.unwrap()).unwrap();
                graph.launch().unwrap();
            }
            assert_eq!(values(&cache), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 0.0, 0.0]);
        }
    }
}
