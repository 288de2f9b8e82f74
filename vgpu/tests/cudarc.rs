//! A program on cudarc's safe layer, which finds the device by its library alone.
#![cfg(vgpu_supported)]

mod common;

use std::process::Command;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaModule, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

/// Set for the process that runs on the device.
const CHILD: &str = "VGPU_TEST_CUDARC";

#[test]
fn cudarc_programs_run_unchanged() {
    let Some(ptx) = common::compile("driver.cu") else { return };
    let folder = common::stage("cudarc");
    let text = folder.join("driver.ptx");
    std::fs::write(&text, ptx).unwrap();
    for seed in ["0", "1", "2"] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "on_the_device", "--nocapture"])
            .env("LD_LIBRARY_PATH", &folder)
            .env("VGPU_SEED", seed)
            .env(CHILD, &text)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
#[ignore = "started by the test above, with the device's library on its path"]
fn on_the_device() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let context = CudaContext::new(0).unwrap();
    assert!(context.name().unwrap().starts_with("vgpu"));
    let module = context.load_module(Ptx::from_file(path)).unwrap();
    launches(&context, &module).unwrap();
    streams(&context, &module).unwrap();
    graphs(&context, &module).unwrap();
    constants(&context, &module).unwrap();
    threads(&context, &module).unwrap();
    // The last one: it ends the context.
    assert!(faults(&context, &module).is_err());
}

fn launches(context: &Arc<CudaContext>, module: &Arc<CudaModule>) -> Result<(), DriverError> {
    let stream = context.default_stream();
    let scale = module.load_function("scale")?;
    let host: Vec<f32> = (0..777).map(|i| i as f32).collect();
    let x = stream.clone_htod(&host)?;
    let mut y = x.clone();
    let (factor, n) = (2.5f32, 777i32);
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&x).arg(&mut y).arg(&factor).arg(&n);
    // SAFETY: the kernel takes these arguments and guards its tail.
    unsafe { launch.launch(LaunchConfig::for_num_elems(777)) }?;
    let back = stream.clone_dtoh(&y)?;
    assert!(back.iter().zip(&host).all(|(y, x)| *y == x * 2.5));
    assert_eq!(stream.clone_dtoh(&x)?, host);
    Ok(())
}

fn streams(context: &Arc<CudaContext>, module: &Arc<CudaModule>) -> Result<(), DriverError> {
    let first = context.new_stream()?;
    let scale = module.load_function("scale")?;
    let x = first.clone_htod(&vec![1f32; 1000])?;
    let mut y = first.alloc_zeros::<f32>(1000)?;
    let mut z = first.alloc_zeros::<f32>(1000)?;
    let second = first.fork()?;
    let (factor, n) = (3f32, 1000i32);
    let mut launch = first.launch_builder(&scale);
    launch.arg(&x).arg(&mut y).arg(&factor).arg(&n);
    // SAFETY: as above.
    unsafe { launch.launch(LaunchConfig::for_num_elems(1000)) }?;
    second.join(&first)?;
    let mut launch = second.launch_builder(&scale);
    launch.arg(&y).arg(&mut z).arg(&factor).arg(&n);
    // SAFETY: as above.
    unsafe { launch.launch(LaunchConfig::for_num_elems(1000)) }?;
    assert!(second.clone_dtoh(&z)?.iter().all(|v| *v == 9.0));
    Ok(())
}

fn graphs(context: &Arc<CudaContext>, module: &Arc<CudaModule>) -> Result<(), DriverError> {
    let stream = context.new_stream()?;
    let scale = module.load_function("scale")?;
    let mut x = stream.clone_htod(&vec![1f32; 64])?;
    let mut y = stream.alloc_zeros::<f32>(64)?;
    let (factor, n) = (2f32, 64i32);
    stream.synchronize()?;
    // SAFETY: one stream only: nothing that the events would order.
    unsafe { context.disable_event_tracking() };
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL)?;
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&x).arg(&mut y).arg(&factor).arg(&n);
    // SAFETY: as above.
    unsafe { launch.launch(LaunchConfig::for_num_elems(64)) }?;
    stream.memcpy_dtod(&y, &mut x)?;
    let graph = stream
        .end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?;
    let graph = graph.expect("work was captured");
    for _ in 0..5 {
        graph.launch()?;
    }
    stream.synchronize()?;
    assert!(stream.clone_dtoh(&y)?.iter().all(|v| *v == 32.0));
    // SAFETY: nothing is under way.
    unsafe { context.enable_event_tracking() };
    Ok(())
}

fn constants(context: &Arc<CudaContext>, module: &Arc<CudaModule>) -> Result<(), DriverError> {
    let stream = context.default_stream();
    let table = module.get_global("table", &stream)?;
    assert_eq!(table.len(), 16);
    assert_eq!(stream.clone_dtoh(&table)?[8..12], 3f32.to_le_bytes());
    Ok(())
}

fn threads(context: &Arc<CudaContext>, module: &Arc<CudaModule>) -> Result<(), DriverError> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8i32)
            .map(|worker| {
                scope.spawn(move || -> Result<Vec<f32>, DriverError> {
                    context.bind_to_thread()?;
                    let stream = if worker % 2 == 0 {
                        context.default_stream()
                    } else {
                        context.new_stream()?
                    };
                    let scale = module.load_function("scale")?;
                    let x = stream.clone_htod(&[worker as f32; 100])?;
                    let mut y = stream.alloc_zeros::<f32>(100)?;
                    let (factor, n) = (2f32, 100i32);
                    let mut launch = stream.launch_builder(&scale);
                    launch.arg(&x).arg(&mut y).arg(&factor).arg(&n);
                    // SAFETY: as above.
                    unsafe { launch.launch(LaunchConfig::for_num_elems(100)) }?;
                    stream.clone_dtoh(&y)
                })
            })
            .collect();
        for (worker, result) in workers.into_iter().enumerate() {
            assert_eq!(result.join().unwrap()?, [2.0 * worker as f32; 100]);
        }
        Ok(())
    })
}

fn faults(context: &Arc<CudaContext>, module: &Arc<CudaModule>) -> Result<(), DriverError> {
    let stream = context.default_stream();
    let spill = module.load_function("out_of_bounds")?;
    let mut y = stream.alloc_zeros::<f32>(10)?;
    let n = 10i32;
    let mut launch = stream.launch_builder(&spill);
    launch.arg(&mut y).arg(&n);
    // SAFETY: the mistake is on purpose, and the device catches it.
    unsafe { launch.launch(LaunchConfig::for_num_elems(32)) }?;
    stream.synchronize()
}
