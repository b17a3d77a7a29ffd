//! The CNI plugin `cni-hpk`: see [`cni_hpk::plugin`].

fn main() -> std::process::ExitCode {
    cni_hpk::plugin::main()
}
