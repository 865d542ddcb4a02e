//! Running programs: said aloud, timed, and where a layer needs it with the output read along.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// How long after a program's end its output is still read. A browser that it left behind holds the pipe open for ever.
const LINGER: Duration = Duration::from_secs(2);

/// Runs a program to its end, with its output on the terminal, and fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let name = name(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// What a program prints on standard output, or `None` where it cannot be run or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a program to its end; every line of its output, standard error included, is printed and shown to `on_line`.
pub(crate) fn run_reading(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<ExitStatus> {
    announce(command);
    let name = name(command);
    // One pipe for both, so that the lines keep their order.
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().context("cannot share a pipe")?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    // The command holds our copies of the writing end; without them the pipe ends when the program does.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            if sender.send(std::mem::take(&mut line)).is_err() {
                break;
            }
        }
    });

    let mut ended: Option<(Instant, ExitStatus)> = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line);
                print!("{line}");
                on_line(&line);
            }
            Err(RecvTimeoutError::Disconnected) => {
                return child.wait().with_context(|| format!("lost {name}"));
            }
            Err(RecvTimeoutError::Timeout) => match ended {
                Some((at, status)) if at.elapsed() > LINGER => return Ok(status),
                Some(_) => {}
                None => {
                    let status = child.try_wait().with_context(|| format!("lost {name}"))?;
                    ended = status.map(|status| (Instant::now(), status));
                }
            },
        }
    }
}

/// Says what is about to run, as one would type it.
pub(crate) fn announce(command: &Command) {
    let arguments = command.get_args().map(OsStr::to_string_lossy);
    let words: Vec<_> = std::iter::once(name(command).into()).chain(arguments).collect();
    println!("   $ {}", words.join(" "));
}

/// A duration for people: `0.4 s`, `12 s`, `3 min 02 s`.
pub(crate) fn spell(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        _ => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

/// The program's name without its directory.
fn name(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    program.file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_a_person_says_them() {
        assert_eq!(spell(Duration::from_millis(440)), "0.4 s");
        assert_eq!(spell(Duration::from_secs(59)), "59 s");
        assert_eq!(spell(Duration::from_secs(182)), "3 min 02 s");
    }

    #[cfg(unix)]
    #[test]
    fn both_streams_are_read_in_order() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; printf three; exit 3"]);
        let status = run_reading(&mut command, |line| lines.push(line.trim_end().to_owned())).unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        assert_eq!(status.code(), Some(3));
    }

    #[cfg(unix)]
    #[test]
    fn a_process_left_behind_does_not_hold_us() {
        let mut command = Command::new("sh");
        // The sleeper inherits the pipe and outlives the shell.
        command.args(["-c", "sleep 30 & echo $!"]);
        let mut sleeper = String::new();
        run_reading(&mut command, |line| line.trim().clone_into(&mut sleeper)).unwrap();
        // Were the pipe waited for, the sleeper would be gone by now.
        assert!(Command::new("kill").arg(&sleeper).status().unwrap().success());
    }
}
