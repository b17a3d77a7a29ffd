//! `linux.seccomp` as a program for the kernel (seccomp(2)), which the trampoline installs.
//!
//! Not Apptainer's own `--security seccomp:FILE`: it would be in force while the trampoline still
//! mounts, and an exec doesn't pass by Apptainer. The rules follow runc: names this kernel's tables
//! don't have are passed over; system calls newer than all the profile names get ENOSYS where its
//! default is an error, so that a C library falls back; several conditions on one argument are
//! alternatives.

use std::collections::BTreeMap;

use hpk_pause::wire;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use crate::error::Error;

/// The kernel's limit (BPF_MAXINSNS).
const LENGTH_LIMIT: usize = 4096;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const ACTION_MASK: u32 = 0x7fff_0000;
const X32_BIT: u32 = 0x4000_0000;

/// An instruction set whose system calls a program here can make.
struct Architecture {
    audit: u32,
    spec: Arch,
    number: fn(&str) -> Option<u32>,
    has_x32: bool,
}

macro_rules! number_of {
    ($arch:ident) => {
        |name| {
            name.parse::<syscalls::$arch::Sysno>()
                .ok()
                .map(|n| n.id() as u32)
        }
    };
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        audit: 0xc000_003e,
        spec: Arch::ScmpArchX86_64,
        number: number_of!(x86_64),
        has_x32: true,
    },
    Architecture {
        audit: 0x4000_0003,
        spec: Arch::ScmpArchX86,
        number: number_of!(x86),
        has_x32: false,
    },
];

#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        audit: 0xc000_00b7,
        spec: Arch::ScmpArchAarch64,
        number: number_of!(aarch64),
        has_x32: false,
    },
    Architecture {
        audit: 0x4000_0028,
        spec: Arch::ScmpArchArm,
        number: number_of!(arm),
        has_x32: false,
    },
];

/// One instruction: `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    /// Instructions to skip if the comparison holds.
    yes: u8,
    /// And if it doesn't.
    no: u8,
    operand: u32,
}

fn instruction(code: u16, yes: u8, no: u8, operand: u32) -> Instruction {
    Instruction {
        code,
        yes,
        no,
        operand,
    }
}

fn load(offset: u32) -> Instruction {
    instruction(LOAD, 0, 0, offset)
}

fn give(action: u32) -> Instruction {
    instruction(RETURN, 0, 0, action)
}

/// What the runtime can do, for `-info`.
pub fn features() -> serde_json::Value {
    serde_json::json!({
        "enabled": true,
        "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
        "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
            "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
        "archs": ARCHITECTURES.map(|a| a.spec.to_string()),
        "knownFlags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_TSYNC"],
        "supportedFlags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_TSYNC"],
    })
}

/// Compiles a profile; `None` for one that allows everything.
///
/// # Errors
/// [`Error::Unsupported`] for what needs a listener, [`Error::Invalid`] for a bad rule.
pub fn compile(profile: &LinuxSeccomp) -> Result<Option<wire::Seccomp>, Error> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let rules: &[LinuxSyscall] = profile.syscalls().as_deref().unwrap_or_default();
    if rules.is_empty() && profile.default_action() == LinuxSeccompAction::ScmpActAllow {
        return Ok(None);
    }
    let rules = rules
        .iter()
        .enumerate()
        .map(|(n, rule)| {
            Ok((
                rule,
                action(rule.action(), rule.errno_ret())?,
                conditions(n, rule)?,
            ))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let asked = profile.architectures().as_deref().unwrap_or_default();
    let mut program = vec![load(ARCHITECTURE)];
    for (n, architecture) in ARCHITECTURES.iter().enumerate() {
        // The machine's own counts, listed or not.
        if n > 0 && !asked.contains(&architecture.spec) {
            continue;
        }
        let body = for_architecture(architecture, default, &rules);
        program.push(instruction(EQUAL, 1, 0, architecture.audit));
        program.push(instruction(JUMP, 0, 0, body.len() as u32));
        program.extend(body);
    }
    program.push(give(KILL_PROCESS));
    if program.len() > LENGTH_LIMIT {
        return Err(Error::Invalid {
            field: "linux.seccomp".into(),
            why: format!(
                "it comes to {} instructions, the kernel takes {LENGTH_LIMIT}",
                program.len()
            ),
        });
    }
    let program = program
        .into_iter()
        .map(|i| {
            u64::from(i.code)
                | u64::from(i.yes) << 16
                | u64::from(i.no) << 24
                | u64::from(i.operand) << 32
        })
        .collect();
    let flags = flags(profile.flags().as_deref().unwrap_or_default())?;
    Ok(Some(wire::Seccomp { flags, program }))
}

fn flags(asked: &[LinuxSeccompFilterFlag]) -> Result<u32, Error> {
    asked.iter().try_fold(0, |flags, flag| {
        Ok(flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 1,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => 2,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 4,
                other => {
                    return Err(Error::Unsupported {
                        field: format!("linux.seccomp flag {other:?}"),
                        why: "there is no listener",
                    });
                }
            })
    })
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Error> {
    if action == LinuxSeccompAction::ScmpActNotify {
        return Err(Error::Unsupported {
            field: "linux.seccomp SCMP_ACT_NOTIFY".into(),
            why: "there is no listener",
        });
    }
    if let Some(errno) = errno.filter(|&n| n > 4095) {
        return Err(Error::Invalid {
            field: "linux.seccomp errnoRet".into(),
            why: format!("{errno} is no error number"),
        });
    }
    Ok(action.as_u32(errno))
}

/// All of one list must hold; the lists are alternatives.
type Conditions = Vec<Vec<LinuxSeccompArg>>;

fn conditions(n: usize, rule: &LinuxSyscall) -> Result<Conditions, Error> {
    let arguments = rule.args().as_deref().unwrap_or_default();
    if let Some(bad) = arguments.iter().find(|a| a.index() > 5) {
        return Err(Error::Invalid {
            field: format!("linux.seccomp.syscalls[{n}].args"),
            why: format!("a system call has no argument {}", bad.index()),
        });
    }
    let twice =
        |a: &LinuxSeccompArg| arguments.iter().filter(|b| b.index() == a.index()).count() > 1;
    Ok(if arguments.iter().any(twice) {
        arguments.iter().map(|a| vec![*a]).collect()
    } else {
        vec![arguments.to_vec()]
    })
}

fn for_architecture(
    architecture: &Architecture,
    default: u32,
    rules: &[(&LinuxSyscall, u32, Conditions)],
) -> Vec<Instruction> {
    // Per call: alternatives in the profile's order, the unconditional ones last.
    let mut calls: BTreeMap<u32, Vec<(&[LinuxSeccompArg], u32)>> = BTreeMap::new();
    for (rule, action, conditions) in rules {
        for number in rule.names().iter().filter_map(|n| (architecture.number)(n)) {
            let alternatives = conditions.iter().map(|all| (all.as_slice(), *action));
            calls.entry(number).or_default().extend(alternatives);
        }
    }
    for alternatives in calls.values_mut() {
        alternatives.sort_by_key(|(all, _)| all.is_empty());
    }
    let newest = calls.keys().next_back().copied().unwrap_or(0);
    let mut program = vec![load(NUMBER)];
    if architecture.has_x32 {
        // As on kernels without x32: its numbers would pass a profile that names what is forbidden.
        program.push(instruction(AT_LEAST, 0, 1, X32_BIT));
        program.push(give(ERRNO | libc::ENOSYS as u32));
    }
    let unknown = match default & ACTION_MASK {
        ERRNO => ERRNO | libc::ENOSYS as u32,
        _ => default,
    };
    program.push(instruction(GREATER, 0, 1, newest));
    program.push(give(unknown));
    for (first, last, alternatives) in ranges(calls) {
        let body = body(&alternatives, default);
        // Jumps of a comparison reach 255 instructions; this one reaches all.
        program.push(instruction(GREATER, 0, 1, last));
        program.push(instruction(JUMP, 0, 0, body.len() as u32 + 2));
        program.push(instruction(AT_LEAST, 1, 0, first));
        program.push(give(default));
        program.extend(body);
    }
    program.push(give(default));
    program
}

/// Neighbouring calls with the same outcome, together.
fn ranges<T: PartialEq>(calls: BTreeMap<u32, Vec<T>>) -> Vec<(u32, u32, Vec<T>)> {
    let mut ranges: Vec<(u32, u32, Vec<T>)> = Vec::new();
    for (number, alternatives) in calls {
        match ranges.last_mut() {
            Some((_, last, before)) if *last + 1 == number && *before == alternatives => {
                *last = number;
            }
            _ => ranges.push((number, number, alternatives)),
        }
    }
    ranges
}

/// The first alternative that holds counts; always ends with a return.
fn body(alternatives: &[(&[LinuxSeccompArg], u32)], default: u32) -> Vec<Instruction> {
    let mut program = Vec::new();
    for (all, action) in alternatives {
        let mut steps = vec![give(*action)];
        for argument in all.iter().rev() {
            // Where it fails, everything up to the end of this alternative is skipped.
            let mut check = comparison(argument, steps.len());
            check.append(&mut steps);
            steps = check;
        }
        program.extend(steps);
    }
    program.push(give(default));
    program
}

/// Compares one argument of 64 bits, half by half; on failure skips `rest` instructions beyond.
fn comparison(argument: &LinuxSeccompArg, rest: usize) -> Vec<Instruction> {
    let offset = ARGUMENTS + 8 * argument.index() as u32;
    let (low, high) = if cfg!(target_endian = "little") {
        (offset, offset + 4)
    } else {
        (offset + 4, offset)
    };
    // At most 6 arguments of 7 instructions each: it fits.
    let rest = rest as u8;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (value_high, value_low) = halves(argument.value());
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => vec![
            load(high),
            instruction(EQUAL, 0, 2 + rest, value_high),
            load(low),
            instruction(EQUAL, 0, rest, value_low),
        ],
        LinuxSeccompOperator::ScmpCmpNe => vec![
            load(high),
            instruction(EQUAL, 0, 2, value_high),
            load(low),
            instruction(EQUAL, rest, 0, value_low),
        ],
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (wanted_high, wanted_low) = halves(argument.value_two().unwrap_or(0));
            vec![
                load(high),
                instruction(AND, 0, 0, value_high),
                instruction(EQUAL, 0, 3 + rest, wanted_high),
                load(low),
                instruction(AND, 0, 0, value_low),
                instruction(EQUAL, 0, rest, wanted_low),
            ]
        }
        // Above in the high half decides; equal there, the low half does.
        LinuxSeccompOperator::ScmpCmpGt => {
            ordered(high, low, argument.value(), GREATER, rest, false)
        }
        LinuxSeccompOperator::ScmpCmpGe => {
            ordered(high, low, argument.value(), AT_LEAST, rest, false)
        }
        LinuxSeccompOperator::ScmpCmpLt => {
            ordered(high, low, argument.value(), AT_LEAST, rest, true)
        }
        LinuxSeccompOperator::ScmpCmpLe => {
            ordered(high, low, argument.value(), GREATER, rest, true)
        }
    }
}

fn ordered(
    high: u32,
    low: u32,
    value: u64,
    code: u16,
    rest: u8,
    negated: bool,
) -> Vec<Instruction> {
    let (value_high, value_low) = ((value >> 32) as u32, value as u32);
    let outcome = |skip_if_true: u8, skip_if_false: u8| {
        if negated {
            (skip_if_false, skip_if_true)
        } else {
            (skip_if_true, skip_if_false)
        }
    };
    // From the second instruction on: 3 more to the end of the comparison.
    let (above, _) = outcome(3, 3 + rest);
    let (_, below) = outcome(2, 2 + rest);
    let (last_true, last_false) = outcome(0, rest);
    vec![
        load(high),
        instruction(GREATER, above, 0, value_high),
        instruction(EQUAL, 0, below, value_high),
        load(low),
        instruction(code, last_true, last_false, value_low),
    ]
}

#[cfg(test)]
mod tests;
