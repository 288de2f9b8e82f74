//! Convolution on a GPU, with the product's core of `kernels/gemm.cuh`.

use bytemuck::NoUninit;

use super::{Conv2dConfig, NAME};
use crate::error::{Error, Result};
use crate::ops::kernels::{kernels, to_u32};
use crate::ops::matmul::Epilogue;
use crate::ops::matmul::cuda::{Ends, Plan, Sizes, each_part};
use crate::tensor::Tensor;

kernels! {
    /// Tiles as those of `matmul_large`.
    fn conv2d_large(
        y: Out,
        x: In,
        w: In,
        sums: Array<Out<f32>, 1>,
        arrived: Array<Out<u32>, 1>,
        bias: Array<In<f32>, 1>,
        add_channel: Array<In<f32>, 1>,
        residual: Array<In, 1>,
        dims: ConvDims,
    );
    /// Tiles as those of `matmul_small`.
    fn conv2d_small(
        y: Out,
        x: In,
        w: In,
        sums: Array<Out<f32>, 1>,
        arrived: Array<Out<u32>, 1>,
        bias: Array<In<f32>, 1>,
        add_channel: Array<In<f32>, 1>,
        residual: Array<In, 1>,
        dims: ConvDims,
    );
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct ConvDims {
    m: u32,
    n: u32,
    k: u32,
    splits: u32,
    rows_of_image: u32,
    activation: u32,
    scale: f32,
    add_stride: u32,
    height: u32,
    width: u32,
    channels: u32,
    doubled: u32,
    out_width: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride: u32,
    top: u32,
    left: u32,
}

/// `x` [B, H, W, I], `w` [O, KH, KW, I]; `out` [B, OH, OW, O]. If `doubled`, of x with every pixel four times.
pub(super) fn convolve(
    (x, doubled): (&Tensor, bool),
    w: &Tensor,
    config: Conv2dConfig,
    epilogue: &Epilogue,
    out: &mut Tensor,
) -> Result<()> {
    let x = x.contiguous()?;
    let (batch, height, width, channels) = x.dims4()?;
    let (height, width) = if doubled { (2 * height, 2 * width) } else { (height, width) };
    let (_, kernel_height, kernel_width, _) = w.dims4()?;
    let [top, _, left, _] = config.padding;
    // Pixels and padded coordinates are counted in 31 bits.
    let extents = [batch * height * width, height + top, width + left];
    if extents.iter().any(|&extent| extent > 1 << 30) {
        let message = format!("on CUDA: at most 2^30 pixels, found {}", x.shape());
        return Err(Error::shape(NAME, message));
    }
    let sizes = Sizes::new(out, kernel_height * kernel_width * channels);
    let plan = Plan::new(sizes, 1, out.dtype());
    let ends = Ends::new(epilogue)?;
    let dims = ConvDims {
        m: to_u32(NAME, sizes.m)?,
        n: to_u32(NAME, sizes.n)?,
        k: to_u32(NAME, sizes.k)?,
        splits: to_u32(NAME, plan.splits)?,
        rows_of_image: to_u32(NAME, sizes.rows_of_image)?,
        activation: epilogue.act as u32,
        scale: epilogue.scale,
        add_stride: to_u32(NAME, ends.add_stride)?,
        height: height as u32,
        width: width as u32,
        channels: to_u32(NAME, channels)?,
        doubled: doubled.into(),
        out_width: to_u32(NAME, out.dim(2))?,
        kernel_height: to_u32(NAME, kernel_height)?,
        kernel_width: to_u32(NAME, kernel_width)?,
        stride: to_u32(NAME, config.stride)?,
        top: top as u32,
        left: left as u32,
    };
    let launch = plan.config(NAME, sizes, 1)?;
    let [bias, add_channel, residual] = &ends.tensors();
    let mut parts = plan.parts(sizes, out)?;
    let (sums, arrived) = &mut each_part(&mut parts);
    let kernel = if plan.large { kernel::conv2d_large } else { kernel::conv2d_small };
    kernel(launch, out, &x, w, sums, arrived, bias, add_channel, residual, dims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::conv::{conv2d, conv2d_doubled};
    use crate::ops::matmul::cuda::least_bytes;
    use crate::ops::resample::upsample_nearest;
    use crate::ops::testing::{
        assert_sums, bits, check_batch, check_sums, counted, devices, random, random_in,
        sums_in_f64, values,
    };
    use crate::ops::weight::{Layout, Weight};
    use crate::tensor::{DType, Device, Shape};

    fn convolution(t: &[&Tensor], config: Conv2dConfig) -> Result<Tensor> {
        let weight = Weight::frozen(t[1], Layout::Convolution, t[1].dtype())?;
        conv2d(t[0], &weight, config, Epilogue::default())
    }

    fn check_shape(x: [usize; 4], o: usize, kernel: usize, config: Conv2dConfig) {
        let shapes = [Shape::from(x), Shape::from([o, x[3], kernel, kernel])];
        check_sums(
            &format!("conv2d {x:?} to {o}, {config:?}"),
            &[random(shapes[0], 1), random(shapes[1], 2)],
            x[3] * kernel * kernel,
            |t| convolution(t, config),
            |t| sums_in_f64(&shapes, t, |t| convolution(t, config)),
        );
    }

    const SAME: Conv2dConfig = Conv2dConfig { stride: 1, padding: [1; 4] };
    const DOWN: Conv2dConfig = Conv2dConfig { stride: 2, padding: [0, 1, 0, 1] };
    const POINTS: Conv2dConfig = Conv2dConfig { stride: 1, padding: [0; 4] };

    /// Of one tile and of several, with vectors and without, at any padding.
    #[test]
    fn a_doubled_image_is_convolved_as_one_in_memory_bit_for_bit() {
        for (x, o, config) in [
            ([1, 3, 5, 16], 24, SAME),
            ([7, 2, 3, 8], 8, DOWN),
            ([2, 9, 7, 5], 6, SAME),
            ([1, 1, 1, 8], 8, SAME),
        ] {
            for device in devices() {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let on = |t: Tensor| t.to_dtype(dtype).unwrap().to_device(device).unwrap();
                    let (x, w) = (on(random(x, 11)), on(random([o, x[3], 3, 3], 12)));
                    let weight = Weight::frozen(&w, Layout::Convolution, dtype).unwrap();
                    let got = conv2d_doubled(&x, &weight, config, Epilogue::default()).unwrap();
                    let doubled = upsample_nearest(&x, 2).unwrap();
                    let expected = conv2d(&doubled, &weight, config, Epilogue::default()).unwrap();
                    assert_eq!(bits(&got), bits(&expected), "{device} {dtype} {}", x.shape());
                }
            }
        }
    }

    #[test]
    fn each_dimension_of_models_is_right_at_its_full_size() {
        for (x, o, kernel, config) in [
            ([1, 4, 5, 2560], 8, 3, SAME),  // all that the UNet concatenates, split
            ([7, 3, 2, 1280], 5, 3, SAME),  // its channels: in,
            ([1, 6, 5, 16], 1280, 3, SAME), // and out
            ([1, 64, 64, 8], 16, 3, SAME),  // latents of 512 x 512,
            ([1, 96, 96, 4], 8, 3, SAME),   // of 768 x 768: four channels,
            ([2, 64, 64, 8], 9, 3, Conv2dConfig::new(2, 1)),
            ([1, 768, 9, 8], 3, 3, SAME), // pictures of the VAE
            ([1, 5, 768, 3], 8, 3, SAME),
            ([1, 97, 96, 8], 16, 3, DOWN),
            ([1, 33, 31, 1920], 4, 1, POINTS),
        ] {
            check_shape(x, o, kernel, config);
        }
    }

    #[test]
    fn more_than_four_million_outputs_are_right() {
        let shapes = [Shape::from([1, 768, 768, 8]), Shape::from([8, 8, 1, 1])];
        let inputs = shapes.map(|shape| random_in(DType::F16, shape, 1));
        for device in devices().skip(1) {
            let [x, w] = [0, 1].map(|i| inputs[i].to_device(device).unwrap());
            let y = convolution(&[&x, &w], POINTS).unwrap();
            let expected = sums_in_f64(&shapes, &[values(&inputs[0]), values(&inputs[1])], |t| {
                convolution(t, POINTS)
            });
            assert_sums(&y, &expected, 8, "768 x 768 pixels");
        }
    }

    #[test]
    #[ignore = "whole layers: a minute"]
    fn whole_layers_of_models_are_right() {
        check_shape([1, 64, 64, 320], 320, 3, SAME);
        check_shape([2, 8, 8, 1280], 1280, 3, SAME);
        check_shape([1, 64, 64, 4], 320, 3, SAME);
        check_shape([1, 768, 768, 16], 3, 3, SAME);
        check_shape([1, 96, 96, 320], 320, 3, DOWN);
    }

    fn plan([batch, h, w, c]: [usize; 4], n: usize, dtype: DType) -> (Sizes, Plan) {
        let sizes = Sizes { m: batch * h * w, n, k: 9 * c, rows_of_image: h * w };
        (sizes, Plan::new(sizes, 1, dtype))
    }

    #[test]
    fn an_image_has_its_bits_whatever_the_tiles_and_with_splits() {
        for (x, n, splits) in [([7, 32, 32, 8], 512, 1), ([7, 8, 8, 264], 70, 3)] {
            for dtype in [DType::F32, DType::F16] {
                let [one, all] = [[1, x[1], x[2], x[3]], x].map(|x| plan(x, n, dtype).1);
                assert_eq!((one.splits, all.splits), (splits, splits));
                assert_eq!((one.large, all.large), (false, splits == 1));
            }
            let w = random([n, x[3], 3, 3], 4);
            check_batch(&format!("conv2d {x:?}"), &random(x, 3), |x| {
                convolution(&[x, &w.to_dtype(x.dtype())?.to_device(x.device())?], SAME)
            });
        }
    }

    #[test]
    fn patches_are_read_once_a_tile_and_tap_and_without_bank_conflicts() {
        const TEST: &str = "ops::conv::cuda::tests::patches_are_read_once_a_tile_and_tap_and_without_bank_conflicts";
        let cases = [([1, 32, 20, 64], 5120), ([1, 9, 12, 64], 136)];
        let dtypes = [DType::F32, DType::F16, DType::BF16];
        let launches = counted(TEST, || {
            for (x, n) in cases {
                for dtype in dtypes {
                    let on = |shape: &[usize], dtype| {
                        Tensor::zeros(shape, dtype, Device::Cuda(0)).unwrap()
                    };
                    let weight = on(&[n, x[3], 3, 3], dtype);
                    let weight = Weight::frozen(&weight, Layout::Convolution, dtype).unwrap();
                    let bias = on(&[n], DType::F32);
                    let end = Epilogue::bias(Some(&bias));
                    conv2d(&on(&x, dtype), &weight, SAME, end).unwrap();
                }
            }
        });
        let Some(launches) = launches else { return };
        let is_product = |l: &&serde_json::Value| l["kernel"].as_str().unwrap().contains("conv2d");
        let launches: Vec<_> = launches.iter().filter(is_product).collect();
        let cases = cases.iter().flat_map(|case| dtypes.map(|dtype| (case, dtype)));
        assert_eq!(launches.len(), cases.clone().count());
        for (launch, (&(x, n), dtype)) in launches.into_iter().zip(cases) {
            let (sizes, plan) = plan(x, n, dtype);
            assert_eq!(plan.large, n == 5120);
            let least = least_bytes(sizes, plan, dtype.size());
            let moved = launch["sectors"].as_u64().unwrap() * 32;
            assert!(moved as f64 <= 1.15 * least as f64, "{launch}: {moved} for {least} bytes");
            assert_eq!(launch["bank_conflicts"], 0, "{launch}");
        }
    }
}
