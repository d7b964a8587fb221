//! The launcher of programs for this crate's tests; nodes are their own.

fn main() {
    let Err(error) = fulmar_worker::become_program(std::env::args().skip(1));
    eprintln!("{error}");
    std::process::exit(126);
}
