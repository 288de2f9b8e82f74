//! The command line: `nadir generate`, `nadir replay`, `nadir doctor`.

mod app;

fn main() -> std::process::ExitCode {
    app::main()
}
