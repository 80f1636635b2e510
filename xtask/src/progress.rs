//! Steps with their times: a spinner on a terminal, plain lines elsewhere.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Does `work` under a title, and prints the title with the time it took and what `work` says of it.
pub fn step(title: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
    let started = Instant::now();
    let spinner = spinner(title);
    let result = work();
    spinner.finish_and_clear();
    let took = format!("{:6.1} s", started.elapsed().as_secs_f64());
    match result {
        Ok(said) => {
            println!("ok   {took}  {title}");
            said.lines().for_each(|line| println!("                {line}"));
            Ok(())
        }
        Err(error) => {
            println!("FAIL {took}  {title}");
            Err(error)
        }
    }
}

fn spinner(title: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(title.to_owned());
    if !std::io::stderr().is_terminal() {
        spinner.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>5}  {msg}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}
