#!/bin/sh
# machine.sh OWNER LAYER CGROUP...: systemd on a throw-away copy of this system with the files in the folder LAYER over it
# (or none, if empty), until it gets SIGTERM or OWNER, the process that starts it, dies. The cgroups are made here, and
# removed then.
#
# All of it lives in a process-id namespace of its own: the kernel kills what is in it with its first process, however it
# was started. A machine is never shut down: systemd would sync every file system of the host then, and hang on one that
# is frozen.
set -eu

keep() {
    owner=$1
    shift
    inside='' stopped=''
    trap 'stopped=1; test -z "$inside" || end "$inside"' TERM INT HUP
    # It may have died before its death could be a signal to us.
    test "$PPID" = "$owner" || stopped=1
    if test -z "$stopped"; then
        setpriv --pdeathsig KILL \
            unshare --mount --pid --fork --kill-child=KILL --propagation private sh "$0" inside "$@" &
        inside=$!
        test -z "$stopped" || end "$inside"
        # A trap ends a wait early.
        while kill -0 "$inside" 2>/dev/null; do wait "$inside" || :; done
    fi
    shift
    # Whoever was killed is in its cgroup until it is gone.
    tries=50
    while test $tries -gt 0 && test -n "$(find "$@" -maxdepth 0 2>/dev/null)"; do
        find "$@" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
        tries=$((tries - 1))
    done
}

# Kill the first process in the namespace, for which `unshare` waits; and that one too, if it waits for too long.
end() {
    # shellcheck disable=SC2046
    kill -KILL $(cat "/proc/$1/task/$1/children") 2>/dev/null || kill -KILL "$1" 2>/dev/null || :
    tries=100
    while test $tries -gt 0 && kill -0 "$1" 2>/dev/null; do
        sleep 0.05
        tries=$((tries - 1))
    done
    kill -KILL "$1" 2>/dev/null || :
}

inside() {
    layer=$1
    shift
    for cgroup; do
        mkdir "$cgroup"
        echo 0 >"$cgroup/cgroup.procs"
    done
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir /run/overlay
    mount -t tmpfs -o mode=755,size=1g tmpfs /run/overlay
    mkdir /run/overlay/up /run/overlay/work /run/overlay/all
    # Not as a layer of the overlay, which takes none that lies in another one.
    test -z "$layer" || cp -a "$layer/." /run/overlay/up
    chmod 755 /run/overlay/up
    mount -t overlay -o "lowerdir=/,upperdir=/run/overlay/up,workdir=/run/overlay/work" overlay /run/overlay/all
    # Whoever unmounts one of these on the host expects that it is gone.
    tac /proc/self/mounts | while read -r _ point _; do
        case $point in
        / | /proc | /dev | /dev/* | /sys | /sys/* | /run | /run/overlay | /run/overlay/all) ;;
        *) umount -l "$(printf '%b' "$point")" 2>/dev/null || : ;;
        esac
    done
    mount -t proc proc /proc
    : >/run/overlay/all/etc/machine-id
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn -q -D /run/overlay/all --boot --register=no --keep-unit \
        --console=pipe --private-network --link-journal=no --machine=jobs systemd.unit=basic.target
}

if test "$1" = inside; then
    shift
    inside "$@"
else
    keep "$@"
fi
