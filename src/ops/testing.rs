//! What the tests of operations share: inputs, and the properties every operation has.

use std::cell::Cell;

use super::Meta;
use crate::error::{Error, Result};
use crate::ops::elementwise::mul;
use crate::ops::gradient::{Gradients, backward};
use crate::ops::layout::concat;
use crate::ops::reduce::sum;
use crate::tensor::{DType, Device, Shape, Tensor, cuda};

/// Reproducible values in [-2, 2), f32.
pub fn random(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03;
    let mut next = || {
        // xorshift64* (Vigna 2016)
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u32 << 22) as f32 - 2.0
    };
    Tensor::from_vec((0..shape.elements()).map(|_| next()).collect(), shape).unwrap()
}

/// [`random`] in another dtype.
pub fn random_in(dtype: DType, shape: impl Into<Shape>, seed: u64) -> Tensor {
    random(shape, seed).to_dtype(dtype).unwrap()
}

/// Twenty shapes to check gradients on: odd and even lengths up to 10 + 2N, and ones.
pub fn shapes<const N: usize>() -> impl Iterator<Item = [usize; N]> {
    (0..20).map(|i| std::array::from_fn(|d| 1 + (i * (2 * d + 3) + d * d) % (5 + 2 * d)))
}

/// The elements as f64.
pub fn values(t: &Tensor) -> Vec<f64> {
    t.to_device(Device::Cpu).unwrap().to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap()
}

/// The elements' bits, for comparisons that allow no difference.
pub fn bits(t: &Tensor) -> Vec<u64> {
    values(t).into_iter().map(f64::to_bits).collect()
}

/// The host, and the first GPU (or virtual device) where there is one (see [`cuda::is_there_for_tests`]).
pub fn devices() -> impl Iterator<Item = Device> {
    [Device::Cpu].into_iter().chain(cuda::is_there_for_tests().then_some(Device::Cuda(0)))
}

/// How a run lays its tensors out in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Inputs and outputs fill storages of their own, so that a kernel sees aligned addresses.
    Whole,
    /// Inputs begin an element behind the start of theirs; outputs lie between sentinels, which must survive.
    Offset,
    /// Inputs have other strides, and an offset.
    Strided,
}

/// What `op` makes of `inputs` on `device`; None when it has no kernel there, or none for doubles.
fn run(
    op: &impl Fn(&[&Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    device: Device,
    layout: Layout,
) -> Option<Tensor> {
    if device != Device::Cpu && inputs.iter().any(|t| t.dtype() == DType::F64) {
        return None;
    }
    let place = |t: &Tensor| match layout {
        Layout::Whole => t.to_device(device).unwrap(),
        Layout::Offset => offset(t, device),
        Layout::Strided => strided_on(t, device),
    };
    let inputs: Vec<Tensor> = inputs.iter().map(place).collect();
    GUARDED.set(layout == Layout::Offset);
    let result = op(&inputs.iter().collect::<Vec<_>>());
    GUARDED.set(false);
    match result {
        Err(Error::NoKernel { .. }) => None,
        result => Some(result.unwrap()),
    }
}

thread_local! {
    /// Whether outputs are made between sentinels.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Sentinels on each side of an output: not a multiple of what a kernel moves at a time.
const GUARDS: usize = 3;
/// A value that all float types hold, and that no operation makes of a test's inputs by chance.
const SENTINEL: f64 = -21504.0;

/// Memory for an output between sentinels, where a run has asked for that; None: as always.
pub fn guarded(meta: &Meta, device: Device) -> Option<Result<Tensor>> {
    let is_float = matches!(meta.dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
    (GUARDED.get() && is_float).then(|| {
        let length = meta.shape.elements() + 2 * GUARDS;
        let whole = Tensor::full([length], SENTINEL, meta.dtype, device)?;
        Ok(whole.with_layout(meta.shape, meta.shape.contiguous_strides(), GUARDS))
    })
}

/// Asserts that an operation has written nothing around its outputs.
pub fn check_guards(op: &str, outputs: &[Tensor]) {
    if !GUARDED.replace(false) {
        return;
    }
    for out in outputs.iter().filter(|out| out.offset() == GUARDS) {
        let length = out.len() + 2 * GUARDS;
        let all = values(&out.with_layout([length].into(), [1].into(), 0));
        let (front, back) = (&all[..GUARDS], &all[length - GUARDS..]);
        let intact = front.iter().chain(back).all(|&x| x == SENTINEL);
        assert!(intact, "{op} wrote outside of its output {out:?}: {front:?}, {back:?}");
    }
    GUARDED.set(true);
}

/// Asserts that `got` is within `units` rounding errors of `dtype`, and `units` of the f32 that it was
/// computed in, of `expected`. Errors of a sum are in proportion to what was summed, not to what came
/// out, so that the mean magnitude of the output counts beside each element's own.
pub fn assert_close(got: &Tensor, expected: &[f64], units: f64, what: &str) {
    let unit = match got.dtype() {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        // The one rounding at the end, doubled; what f32 lost before it is a hundredth of that.
        DType::F16 => 2f64.powi(-10) / units + f64::from(f32::EPSILON),
        DType::BF16 => 2f64.powi(-7) / units + f64::from(f32::EPSILON),
        other => panic!("{what}: not a float: {other}"),
    };
    let got_values = values(got);
    assert_eq!(got_values.len(), expected.len(), "{what}: number of elements");
    let mean = expected.iter().map(|x| x.abs()).sum::<f64>() / expected.len().max(1) as f64;
    for (i, (g, e)) in got_values.iter().zip(expected).enumerate() {
        // Half precision is subnormal below 2^-14: its rounding error no longer shrinks.
        let floor = if got.dtype() == DType::F16 { 2f64.powi(-24) } else { 0.0 };
        let tolerance = units * unit * (e.abs() + mean) + floor;
        assert!(
            (g - e).abs() <= tolerance,
            "{what} ({}), element {i} of {}: {g} instead of {e}, off by {:.3e} > {tolerance:.3e}",
            got.dtype(),
            got.shape(),
            (g - e).abs()
        );
    }
}

/// Runs `op` on `inputs` in all four dtypes and on every device against the formula `reference` in f64 (see
/// [`assert_close`]), and on offset and strided views of the same values, which must give the same bits.
pub fn check(
    what: &str,
    inputs: &[Tensor],
    units: f64,
    op: impl Fn(&[&Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    check_against(what, inputs, op, reference, |got, expected, what| {
        assert_close(got, expected, units, what);
    });
}

/// As [`check`], of sums of `terms` products: `reference` gives each sum, and the sum of its products' magnitudes (see
/// [`assert_sums`]).
pub fn check_sums(
    what: &str,
    inputs: &[Tensor],
    terms: usize,
    op: impl Fn(&[&Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Vec<f64>]) -> Vec<Sum>,
) {
    check_against(what, inputs, op, reference, |got, expected, what| {
        assert_sums(got, expected, terms, what);
    });
}

/// As [`check`], with a comparison of its own.
pub fn check_against<E>(
    what: &str,
    inputs: &[Tensor],
    op: impl Fn(&[&Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Vec<f64>]) -> Vec<E>,
    compare: impl Fn(&Tensor, &[E], &str),
) {
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let inputs: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
        let expected = reference(&inputs.iter().map(values).collect::<Vec<_>>());
        for device in devices() {
            let Some(got) = run(&op, &inputs, device, Layout::Whole) else { continue };
            assert_eq!(got.dtype(), dtype, "{what}: dtype of the output");
            compare(&got, &expected, &format!("{what} on {device}"));
            for layout in [Layout::Offset, Layout::Strided] {
                let again = run(&op, &inputs, device, layout).unwrap();
                assert!(bits(&got) == bits(&again), "{what} ({dtype}, {device}): {layout:?}");
            }
        }
    }
}

/// A sum of products, exactly, and the sum of their magnitudes.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    pub exact: f64,
    pub magnitude: f64,
}

impl FromIterator<f64> for Sum {
    fn from_iter<I: IntoIterator<Item = f64>>(products: I) -> Self {
        let add = |s: Self, x: f64| Self { exact: s.exact + x, magnitude: s.magnitude + x.abs() };
        products.into_iter().fold(Self { exact: 0.0, magnitude: 0.0 }, add)
    }
}

/// Sums of products as `op`, which is linear in each input, gives them in f64 on the CPU. What it reads has `shapes`.
pub fn sums_in_f64(
    shapes: &[Shape],
    values_of: &[Vec<f64>],
    op: impl Fn(&[&Tensor]) -> Result<Tensor>,
) -> Vec<Sum> {
    let run = |map: fn(f64) -> f64| {
        let tensor = |(shape, values): (&Shape, &Vec<f64>)| {
            Tensor::from_vec(values.iter().copied().map(map).collect(), *shape).unwrap()
        };
        let inputs: Vec<Tensor> = shapes.iter().zip(values_of).map(tensor).collect();
        values(&op(&inputs.iter().collect::<Vec<_>>()).unwrap())
    };
    let magnitudes = run(f64::abs);
    let sum = |(exact, magnitude)| Sum { exact, magnitude };
    run(|x| x).into_iter().zip(magnitudes).map(sum).collect()
}

/// What a virtual device counts of the launches of `work`, each as its JSON; None on a real device, or without one.
/// The test of this name runs once more for it, in a process of its own.
pub fn counted(test: &str, work: impl FnOnce()) -> Option<Vec<serde_json::Value>> {
    const COUNTERS: &str = "VGPU_COUNTERS";
    if !cuda::is_there_for_tests() {
        return None;
    }
    if std::env::var_os(COUNTERS).is_some() {
        work();
        cuda::Stream::current(Device::Cuda(0)).unwrap().synchronize().unwrap();
        return None;
    }
    if !cuda::devices().unwrap()[0].name.starts_with("vgpu") {
        return None;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(COUNTERS, file.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{test}: {said}");
    let text = std::fs::read_to_string(file.path()).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Half the distance between 1 and the next value.
pub fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 2f64.powi(-53),
        DType::F32 => 2f64.powi(-24),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-8),
    }
}

/// Asserts that sums of `terms` products are as exact as their dtype allows: their error is at most
/// `terms u sum |a b|` (Higham, Accuracy and Stability, 3.1), u being that of the accumulator; storing them adds that of
/// their dtype. Four more terms are for an epilogue.
pub fn assert_sums(got: &Tensor, expected: &[Sum], terms: usize, what: &str) {
    let dtype = got.dtype();
    let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let subnormal = 2f64.powi(-24); // spacing of f16 near 0
    let got = values(got);
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    for (i, (got, Sum { exact, magnitude })) in got.iter().zip(expected).enumerate() {
        let tolerance = (terms + 4) as f64 * unit_roundoff(acc) * magnitude
            + unit_roundoff(dtype) * (exact.abs() + subnormal);
        let error = (got - exact).abs();
        assert!(error <= tolerance, "{what} ({dtype}), element {i}: {got} instead of {exact}");
    }
}

/// Asserts that the gradients of `op` by each of `inputs`, in f64, are those that differences show.
///
/// The loss is the sum of the output under random weights. A difference of fourth order at a distance of 1e-3 errs by
/// 1e-12 of a fifth derivative and by 1e-13 of the loss, so that 1e-6 of the gradient (and of its mean magnitude, since
/// errors of a sum are in proportion to what was summed) leaves room for wild functions only.
pub fn check_gradient(what: &str, inputs: &[Tensor], op: impl Fn(&[&Tensor]) -> Result<Tensor>) {
    let inputs: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
    let loss = |inputs: &[Tensor]| weighted_sum(&op, inputs).unwrap();
    let variables: Vec<Tensor> = inputs.iter().map(Tensor::variable).collect();
    let gradients = backward(loss(&variables)).unwrap();
    check_gradient_on_device(what, &op, &inputs, &variables, &gradients);
    for (place, (input, variable)) in inputs.iter().zip(&variables).enumerate() {
        let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{what}: input {place}"));
        assert_eq!((gradient.shape(), gradient.dtype()), (input.shape(), DType::F64), "{what}");
        let gradient = values(gradient);
        let mean = gradient.iter().map(|g| g.abs()).sum::<f64>() / gradient.len() as f64;
        // Of a large input about a hundred elements; an odd step visits rows and columns in turn.
        let step = (gradient.len() / 97) | 1;
        for at in (0..gradient.len()).step_by(step) {
            let moved = |by: f64| {
                let mut moved = values(input);
                moved[at] += by;
                let mut all = inputs.clone();
                all[place] = Tensor::from_vec(moved, *input.shape()).unwrap();
                values(&loss(&all))[0]
            };
            let h = 1e-3;
            let near = moved(h) - moved(-h);
            let far = moved(2.0 * h) - moved(-2.0 * h);
            let difference = (8.0 * near - far) / (12.0 * h);
            let error = (gradient[at] - difference).abs();
            let tolerance = 1e-6 * (difference.abs() + mean);
            assert!(
                error <= tolerance,
                "{what}: gradient by element {at} of input {place}, {}: {} instead of {difference}",
                input.shape(),
                gradient[at],
            );
        }
    }
}

/// The loss of [`check_gradient`].
fn weighted_sum(op: &impl Fn(&[&Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Result<Tensor> {
    let y = op(&inputs.iter().collect::<Vec<_>>())?;
    let weights = random(*y.shape(), 99).to_dtype(y.dtype())?.to_device(y.device())?;
    let all: Vec<usize> = (0..y.rank()).collect();
    sum(&mul(&y, &weights)?, &all)
}

/// Asserts that a GPU, where there is one, finds in f32 the gradients that the CPU finds in f64 from the same inputs, which
/// f32 holds. The roundings of a sum of a thousand terms deviate by 32 units; 256 are eight such deviations.
fn check_gradient_on_device(
    what: &str,
    op: &impl Fn(&[&Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    variables: &[Tensor],
    expected: &Gradients,
) {
    for device in devices().filter(|device| *device != Device::Cpu) {
        let single = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_device(device).unwrap();
        let on_device: Vec<Tensor> = inputs.iter().map(|t| single(t).variable()).collect();
        let gradients = match weighted_sum(op, &on_device).and_then(backward) {
            Err(Error::NoKernel { .. }) => continue,
            gradients => gradients.unwrap(),
        };
        for (place, (ours, theirs)) in on_device.iter().zip(variables).enumerate() {
            let (got, expected) = (gradients.get(ours).unwrap(), expected.get(theirs).unwrap());
            assert_eq!(got.shape(), expected.shape(), "{what}: input {place}");
            assert_close(
                got,
                &values(expected),
                256.0,
                &format!("{what} on {device}, input {place}"),
            );
        }
    }
}

/// The same values as `t` behind other strides and an offset.
pub fn strided(t: &Tensor) -> Tensor {
    strided_on(t, t.device())
}

/// As [`strided`], of a CPU tensor: the view is made on `device`, so that its kernels see it as it is.
fn strided_on(t: &Tensor, device: Device) -> Tensor {
    let rank = t.rank();
    if rank < 2 {
        return t.to_device(device).unwrap();
    }
    let order: Vec<usize> = (0..rank).rev().collect();
    let back = t.permute(&order).unwrap().contiguous().unwrap();
    // A row before and one behind, so that the view does not start where the storage does.
    let padding = back.narrow(0, 0, 1.min(back.dim(0))).unwrap();
    let padded = concat(&[&padding, &back, &padding], 0).unwrap().to_device(device).unwrap();
    padded.narrow(0, padding.dim(0), back.dim(0)).unwrap().permute(&order).unwrap()
}

/// The same values as those of the CPU tensor `t`, contiguous on `device` from the second element of their storage
/// on: no vector access fits there.
fn offset(t: &Tensor, device: Device) -> Tensor {
    let flat = t.reshape([t.len()]).unwrap();
    let padding = match t.len() {
        0 => return t.to_device(device).unwrap(),
        _ => flat.narrow(0, 0, 1).unwrap(),
    };
    let padded = concat(&[&padding, &flat, &padding], 0).unwrap().to_device(device).unwrap();
    padded.narrow(0, 1, t.len()).unwrap().reshape(*t.shape()).unwrap()
}

/// Asserts that `op` gives each entry of dimension 0 the bits that it has alone, whatever the batch.
pub fn check_batch(what: &str, batch: &Tensor, op: impl Fn(&Tensor) -> Result<Tensor>) {
    let op = |x: &[&Tensor]| op(x[0]);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let batch = batch.to_dtype(dtype).unwrap();
        for device in devices() {
            let run = |batch: Tensor, layout| run(&op, &[batch], device, layout);
            let Some(whole) = run(batch.clone(), Layout::Whole) else { continue };
            for i in 0..batch.dim(0) {
                let entry = batch.narrow(0, i, 1).unwrap();
                let slot = bits(&whole.narrow(0, i, 1).unwrap());
                for layout in [Layout::Whole, Layout::Offset] {
                    let alone = run(entry.clone(), layout).unwrap();
                    assert!(
                        bits(&alone) == slot,
                        "{what} ({dtype}, {device}): {layout:?} entry {i}"
                    );
                }
            }
        }
    }
}

/// Asserts that a NaN at `at` of `input` shows in the output of `op`.
pub fn check_nan(what: &str, input: &Tensor, at: usize, op: impl Fn(&Tensor) -> Result<Tensor>) {
    let op = |x: &[&Tensor]| op(x[0]);
    let mut poisoned = input.to_vec::<f32>().unwrap();
    poisoned[at] = f32::NAN;
    let poisoned = Tensor::from_vec(poisoned, input.shape()).unwrap();
    for device in devices() {
        let Some(out) = run(&op, std::slice::from_ref(&poisoned), device, Layout::Whole) else {
            continue;
        };
        assert!(values(&out).iter().any(|x| x.is_nan()), "{what} swallowed a NaN on {device}");
    }
}
