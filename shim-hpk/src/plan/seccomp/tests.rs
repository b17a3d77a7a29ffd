//! The programs are run by a small interpreter of classic BPF, as the kernel would.

use serde_json::{Value, json};

use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = ERRNO | 1;

struct Call {
    audit: u32,
    number: u32,
    arguments: [u64; 6],
}

fn call(name: &str, arguments: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    Call {
        audit: ARCHITECTURES[0].audit,
        number: (ARCHITECTURES[0].number)(name).unwrap(),
        arguments: all,
    }
}

fn compiled(profile: Value) -> wire::Seccomp {
    compile(&serde_json::from_value(profile).unwrap())
        .unwrap()
        .unwrap()
}

fn run(filter: &wire::Seccomp, call: &Call) -> u32 {
    let word = |offset: u32| match offset {
        NUMBER => call.number,
        ARCHITECTURE => call.audit,
        _ => {
            let argument = call.arguments[(offset - ARGUMENTS) as usize / 8];
            (argument >> (8 * ((offset - ARGUMENTS) % 8))) as u32
        }
    };
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let bits = filter.program[at];
        let (code, operand) = (bits as u16, (bits >> 32) as u32);
        let (yes, no) = ((bits >> 16) as u8 as usize, (bits >> 24) as u8 as usize);
        let branch = |holds: bool| if holds { yes } else { no };
        at += 1;
        match code {
            LOAD => accumulator = word(operand),
            AND => accumulator &= operand,
            JUMP => at += operand as usize,
            EQUAL => at += branch(accumulator == operand),
            GREATER => at += branch(accumulator > operand),
            AT_LEAST => at += branch(accumulator >= operand),
            RETURN => return operand,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn one_rule(args: Value) -> wire::Seccomp {
    compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": args}],
    }))
}

#[test]
fn what_is_listed_is_allowed_and_nothing_else() {
    let filter = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read", "write", "no_such_call", "futex_waitv"], "action": "SCMP_ACT_ALLOW"}],
    }));
    assert_eq!(run(&filter, &call("read", &[])), ALLOW);
    assert_eq!(run(&filter, &call("write", &[])), ALLOW);
    assert_eq!(run(&filter, &call("open", &[])), EPERM);
    assert_eq!(run(&filter, &call("mount", &[])), EPERM);
}

#[test]
fn calls_newer_than_the_profile_are_unknown_not_forbidden() {
    let filter = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["clone3"], "action": "SCMP_ACT_ALLOW"}],
    }));
    let newer = call("faccessat2", &[]);
    assert_eq!(run(&filter, &newer), ERRNO | libc::ENOSYS as u32);
}

#[test]
fn another_instruction_set_is_killed_and_a_listed_one_has_its_own_numbers() {
    let profile = |architectures: Value| {
        compiled(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "architectures": architectures,
            "syscalls": [{"names": ["getpid"], "action": "SCMP_ACT_ALLOW"}],
        }))
    };
    let foreign = Call {
        audit: ARCHITECTURES[1].audit,
        number: (ARCHITECTURES[1].number)("getpid").unwrap(),
        arguments: [0; 6],
    };
    assert_eq!(run(&profile(json!([])), &foreign), KILL_PROCESS);
    let listed = profile(json!([ARCHITECTURES[0].spec, ARCHITECTURES[1].spec]));
    assert_eq!(run(&listed, &foreign), ALLOW);
    assert_eq!(run(&listed, &call("getpid", &[])), ALLOW);
}

#[test]
fn numbers_of_x32_pass_no_profile_not_even_one_that_names_only_what_is_forbidden() {
    let filter = compiled(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}],
    }));
    assert_eq!(run(&filter, &call("getpid", &[])), ALLOW);
    if ARCHITECTURES[0].has_x32 {
        let native = call("mount", &[]);
        let x32 = Call {
            number: native.number | X32_BIT,
            ..native
        };
        assert_eq!(run(&filter, &x32), ERRNO | libc::ENOSYS as u32);
    }
}

#[test]
fn every_operator_compares_all_64_bits() {
    let big = 0x0000_0002_0000_0005_u64;
    for (operator, holds, fails) in [
        ("SCMP_CMP_EQ", vec![big], vec![5, big + 1, big + (1 << 32)]),
        ("SCMP_CMP_NE", vec![5, big + 1, big + (1 << 32)], vec![big]),
        (
            "SCMP_CMP_GT",
            vec![big + 1, 3 << 32],
            vec![big, big - 1, u64::from(u32::MAX)],
        ),
        (
            "SCMP_CMP_GE",
            vec![big, big + 1, 3 << 32],
            vec![big - 1, u64::from(u32::MAX)],
        ),
        (
            "SCMP_CMP_LT",
            vec![big - 1, 9],
            vec![big, big + 1, u64::MAX],
        ),
        ("SCMP_CMP_LE", vec![big, big - 1, 9], vec![big + 1, 3 << 32]),
    ] {
        let filter = one_rule(json!([{"index": 0, "value": big, "op": operator}]));
        for argument in holds {
            let outcome = run(&filter, &call("personality", &[argument]));
            assert_eq!(outcome, ALLOW, "{operator} {argument:#x}");
        }
        for argument in fails {
            let outcome = run(&filter, &call("personality", &[argument]));
            assert_eq!(outcome, EPERM, "{operator} {argument:#x}");
        }
    }
}

#[test]
fn a_masked_comparison_looks_at_the_masks_bits() {
    let mask = 0x7e02_0000_u64;
    let filter = one_rule(json!([
        {"index": 0, "value": mask, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
    ]));
    assert_eq!(run(&filter, &call("personality", &[0x11])), ALLOW);
    assert_eq!(run(&filter, &call("personality", &[0x0200_0011])), EPERM);
}

#[test]
fn conditions_on_two_arguments_must_both_hold_on_one_any_of_them() {
    let both = one_rule(json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 2, "op": "SCMP_CMP_GE"},
    ]));
    assert_eq!(run(&both, &call("personality", &[1, 3])), ALLOW);
    assert_eq!(run(&both, &call("personality", &[1, 1])), EPERM);
    assert_eq!(run(&both, &call("personality", &[2, 3])), EPERM);
    let any = one_rule(json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
        {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"},
    ]));
    assert_eq!(run(&any, &call("personality", &[8])), ALLOW);
    assert_eq!(run(&any, &call("personality", &[2])), EPERM);
}

#[test]
fn rules_with_errors_of_their_own_come_before_the_unconditional_one() {
    let filter = compiled(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
             "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]},
            {"names": ["kexec_load"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    }));
    assert_eq!(run(&filter, &call("socket", &[40])), ERRNO | 97);
    assert_eq!(run(&filter, &call("socket", &[2])), ALLOW);
    assert_eq!(run(&filter, &call("kexec_load", &[])), KILL_PROCESS);
    assert_eq!(run(&filter, &call("read", &[])), ALLOW);
}

#[test]
fn a_profile_that_allows_everything_needs_no_filter() {
    let profile = serde_json::from_value(json!({"defaultAction": "SCMP_ACT_ALLOW"})).unwrap();
    assert_eq!(compile(&profile).unwrap(), None);
}

#[test]
fn what_can_not_be_done_is_refused_by_its_name() {
    for (profile, wanted) in [
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp SCMP_ACT_NOTIFY is not supported",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000}),
            "linux.seccomp errnoRet is invalid: 70000",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}),
            "linux.seccomp.syscalls[0].args is invalid",
        ),
    ] {
        let profile = serde_json::from_value(profile).unwrap();
        let text = compile(&profile).unwrap_err().to_string();
        assert!(text.starts_with(wanted), "{text}");
    }
}
