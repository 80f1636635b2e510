//! The kernel calls that an exec task cannot make, whoever it runs as: what administers the machine, reaches into other
//! processes or kernel memory, or is young enough that its faults are still being found. In spirit Docker's default profile.
//!
//! ```text
//! number known to this build, not listed   allowed
//! listed                                   EPERM, unless the task has the capability that the call is for
//! clone3, numbers newer than this build    ENOSYS: C libraries then fall back to what can be checked
//! another architecture's calls             the process ends
//! ```
//!
//! The filter of allowed numbers is answered from a bitmap (kernel 5.11 and later), so that it costs a task next to nothing.

use caps::{Capability, CapsHashSet};
use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("the filter of kernel calls cannot be made for this machine")]
    Filter(#[from] BackendError),
    #[error("the filter of kernel calls cannot be set; the kernel needs CONFIG_SECCOMP_FILTER")]
    Apply(#[from] seccompiler::Error),
}

/// The newest call that this list was made for (Linux 6.12): `mseal`.
const NEWEST: i64 = 462;
/// Newer ones that are told from nonsense.
const NEWER: i64 = NEWEST + 128;

const NEW_NAMESPACES: u64 = 0x7e02_0080;
const AF_VSOCK: u64 = 40;
/// Types into a terminal that others read from.
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// Each with the capability whose holders may make it all the same.
const REFUSED: &[(i64, Option<Capability>)] = &[
    (libc::SYS_acct, Some(Capability::CAP_SYS_PACCT)),
    (libc::SYS_add_key, None),
    (libc::SYS_bpf, Some(Capability::CAP_BPF)),
    (libc::SYS_clock_adjtime, Some(Capability::CAP_SYS_TIME)),
    (libc::SYS_clock_settime, Some(Capability::CAP_SYS_TIME)),
    (libc::SYS_delete_module, Some(Capability::CAP_SYS_MODULE)),
    (libc::SYS_fanotify_init, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_finit_module, Some(Capability::CAP_SYS_MODULE)),
    (libc::SYS_fsconfig, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_fsmount, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_fsopen, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_fspick, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_init_module, Some(Capability::CAP_SYS_MODULE)),
    (libc::SYS_io_uring_enter, None),
    (libc::SYS_io_uring_register, None),
    (libc::SYS_io_uring_setup, None),
    (libc::SYS_kcmp, Some(Capability::CAP_SYS_PTRACE)),
    (libc::SYS_kexec_load, Some(Capability::CAP_SYS_BOOT)),
    (libc::SYS_keyctl, None),
    (libc::SYS_lookup_dcookie, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_mbind, Some(Capability::CAP_SYS_NICE)),
    (libc::SYS_migrate_pages, Some(Capability::CAP_SYS_NICE)),
    (libc::SYS_mount, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_mount_setattr, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_move_mount, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_move_pages, Some(Capability::CAP_SYS_NICE)),
    (libc::SYS_nfsservctl, None),
    (libc::SYS_open_by_handle_at, Some(Capability::CAP_DAC_READ_SEARCH)),
    (libc::SYS_open_tree, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_perf_event_open, Some(Capability::CAP_PERFMON)),
    (libc::SYS_pidfd_getfd, Some(Capability::CAP_SYS_PTRACE)),
    (libc::SYS_pivot_root, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_process_vm_readv, Some(Capability::CAP_SYS_PTRACE)),
    (libc::SYS_process_vm_writev, Some(Capability::CAP_SYS_PTRACE)),
    (libc::SYS_ptrace, Some(Capability::CAP_SYS_PTRACE)),
    (libc::SYS_quotactl, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_quotactl_fd, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_reboot, Some(Capability::CAP_SYS_BOOT)),
    (libc::SYS_request_key, None),
    (libc::SYS_set_mempolicy, Some(Capability::CAP_SYS_NICE)),
    (libc::SYS_setns, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_settimeofday, Some(Capability::CAP_SYS_TIME)),
    (libc::SYS_swapoff, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_swapon, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_syslog, Some(Capability::CAP_SYSLOG)),
    (libc::SYS_umount2, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_unshare, Some(Capability::CAP_SYS_ADMIN)),
    (libc::SYS_userfaultfd, None),
    (libc::SYS_vhangup, Some(Capability::CAP_SYS_TTY_CONFIG)),
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[(i64, Option<Capability>)] = &[
    (libc::SYS__sysctl, None),
    (libc::SYS_ioperm, Some(Capability::CAP_SYS_RAWIO)),
    (libc::SYS_iopl, Some(Capability::CAP_SYS_RAWIO)),
    (libc::SYS_kexec_file_load, Some(Capability::CAP_SYS_BOOT)),
    (libc::SYS_modify_ldt, None),
    (libc::SYS_sysfs, None),
    (libc::SYS_uselib, None),
    (libc::SYS_ustat, None),
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[(i64, Option<Capability>)] = &[];

/// For the calling process and all it starts; there is no way back. Needs no new privileges to be forbidden before.
pub fn apply(kept: &CapsHashSet) -> Result<(), SeccompError> {
    for program in [absent()?, allowed(kept)?] {
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

/// Calls that are not there: with an error of their own, which one filter cannot give beside another.
fn absent() -> Result<BpfProgram, SeccompError> {
    let numbers = std::iter::once(libc::SYS_clone3).chain(NEWEST + 1..=NEWER);
    let rules = numbers.map(|number| (number, Vec::new())).collect();
    let errno = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, errno, arch()?)?.try_into()?)
}

fn allowed(kept: &CapsHashSet) -> Result<BpfProgram, SeccompError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = (0..=NEWER).map(|number| (number, Vec::new())).collect();
    for (number, capability) in REFUSED.iter().chain(REFUSED_HERE) {
        if !capability.is_some_and(|capability| kept.contains(&capability)) {
            rules.remove(number);
        }
    }
    use SeccompCmpOp::{MaskedEq, Ne};
    let when = |conditions: Vec<SeccompCondition>| SeccompRule::new(conditions).map(|rule| vec![rule]);
    if !kept.contains(&Capability::CAP_SYS_ADMIN) {
        let plain = SeccompCondition::new(0, SeccompCmpArgLen::Qword, MaskedEq(NEW_NAMESPACES), 0)?;
        rules.insert(libc::SYS_clone, when(vec![plain])?);
    }
    let family = SeccompCondition::new(0, SeccompCmpArgLen::Dword, Ne, AF_VSOCK)?;
    rules.insert(libc::SYS_socket, when(vec![family])?);
    let typing = [TIOCSTI, TIOCLINUX].map(|request| SeccompCondition::new(1, SeccompCmpArgLen::Dword, Ne, request));
    rules.insert(libc::SYS_ioctl, when(typing.into_iter().collect::<Result<_, _>>()?)?);
    let errno = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    Ok(SeccompFilter::new(rules, errno, SeccompAction::Allow, arch()?)?.try_into()?)
}

fn arch() -> Result<TargetArch, BackendError> {
    std::env::consts::ARCH.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_fit_into_the_kernel() {
        for kept in [CapsHashSet::new(), [Capability::CAP_SYS_ADMIN].into()] {
            let lengths = [absent().expect("makes").len(), allowed(&kept).expect("makes").len()];
            assert!(lengths.iter().all(|length| (1..=4096).contains(length)), "{lengths:?}");
        }
    }

    #[test]
    fn a_capability_brings_its_calls_back() {
        let plain = allowed(&CapsHashSet::new()).expect("makes").len();
        assert!(allowed(&[Capability::CAP_SYS_PTRACE].into()).expect("makes").len() > plain);
    }
}
