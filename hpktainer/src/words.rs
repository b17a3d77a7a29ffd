//! What follows the options of `run` and `exec`: a name, then the program's own command line, of which nothing is ours,
//! whatever it looks like. As with Docker.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, Error, FromArgMatches};

/// The id under which clap has them all: as separate arguments it would take the command's options for ours.
const WORDS: &str = "words";

/// The name, and the words after it.
#[derive(Debug, Clone)]
pub struct Words<T> {
    pub of: T,
    pub command: Vec<String>,
}

/// What can be named there.
pub trait Named: FromStr<Err: Display> + Debug + Clone {
    /// How help calls the words.
    const VALUES: [&'static str; 2];
    const HELP: &'static str;
    /// How many words are the least.
    const LEAST: usize;
}

impl<T: Named> clap::Args for Words<T> {
    fn augment_args(command: Command) -> Command {
        command.arg(
            Arg::new(WORDS)
                .value_names(T::VALUES)
                .help(T::HELP)
                .required(true)
                .num_args(T::LEAST..)
                .action(ArgAction::Append)
                .trailing_var_arg(true)
                .allow_hyphen_values(true),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Named> FromArgMatches for Words<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut words = matches
            .get_many::<String>(WORDS)
            .unwrap_or_default()
            .cloned();
        let name = words.next().unwrap_or_default();
        // No option of ours, or it had been taken for one.
        if name.starts_with('-') {
            let text = format!("unexpected argument '{name}' found\n");
            return Err(Error::raw(ErrorKind::UnknownArgument, text));
        }
        let of = name.parse().map_err(|error| {
            let text = format!("invalid value '{name}' for '<{}>': {error}\n", T::VALUES[0]);
            Error::raw(ErrorKind::ValueValidation, text)
        })?;
        Ok(Self {
            of,
            command: words.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::image::Name;

    #[derive(Debug, Parser)]
    struct Cli {
        #[arg(short, long)]
        publish: Vec<u16>,
        #[arg(short, long)]
        detach: bool,
        #[command(flatten)]
        words: Words<Name>,
    }

    fn parse(line: &str) -> Result<Cli, Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn what_follows_the_name_is_the_programs() {
        for command in [
            "-p 7000",
            "-d",
            "--help",
            "-V",
            "-- ls",
            "-zzz -p 1",
            "ls -d",
            "",
        ] {
            let cli = parse(format!("run -p 80 busybox {command}").trim_end()).unwrap();
            assert_eq!(cli.publish, [80], "{command}");
            assert!(!cli.detach, "{command}");
            assert_eq!(cli.words.of.to_string(), "busybox");
            assert_eq!(cli.words.command.join(" "), command);
        }
    }

    #[test]
    fn a_double_dash_ends_our_options() {
        let cli = parse("run -d -- busybox -- ls").unwrap();
        assert_eq!(cli.words.of.to_string(), "busybox");
        assert_eq!(cli.words.command, ["--", "ls"]);
    }

    #[test]
    fn an_option_that_is_none_is_no_name() {
        for line in ["run --nosuch busybox", "run -d -x busybox", "run -"] {
            assert_eq!(parse(line).unwrap_err().kind(), ErrorKind::UnknownArgument);
        }
    }

    #[test]
    fn a_bad_name_is_told() {
        let error = parse("run Busy").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueValidation);
        assert!(
            error.to_string().contains("'Busy' for '<IMAGE>'"),
            "{error}"
        );
        assert_eq!(
            parse("run -d").unwrap_err().kind(),
            ErrorKind::MissingRequiredArgument
        );
    }
}
