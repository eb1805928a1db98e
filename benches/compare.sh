#!/usr/bin/env bash
# Puts the daemon beside qemu-storage-daemon's vhost-user-blk export: 4 KiB
# random reads of a file on tmpfs and of a warm file on ext4, at several depths.
#
# Usage: benches/compare.sh [--runs N] [--time-ms N] [--depths "1 32 128"]
#                           [--places "tmpfs ext4"] [--details]
#
# The load is pinned to CPU 0, the back-ends with all their threads to CPU 1;
# their runs alternate, and the tables give medians and their range over the
# runs. CPU time is that of the whole back-end process, what the kernel does in
# its name on worker threads included.
#
# Ratios are midflight / qemu-storage-daemon: above 1 is better for IOPS, below
# 1 for CPU. Differences below 20 % are noise unless they repeat.
#
# Environment:
#   QSD          program to compare with; else that of tests/e2e/prepare's tree,
#                else the one in PATH
#   QSD_AIO      its aio engine: io_uring (default), threads, native
#   QSD_THREAD   "iothread" (default: it polls, as QEMU configures it) or "main"
#   EXT4_DIR     where the ext4 file goes; else the cargo target directory
#   TMPFS_DIR    where the tmpfs file goes; else /dev/shm
#   MIDFLIGHT, LOAD  programs to use instead of building them
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."

runs=5 time_ms=1000 depths="1 32 128" places="tmpfs ext4" details=0
while (($#)); do
    case $1 in
        --runs) runs=$2; shift 2 ;;
        --time-ms) time_ms=$2; shift 2 ;;
        --depths) depths=$2; shift 2 ;;
        --places) places=$2; shift 2 ;;
        --details) details=1; shift ;;
        *) sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//' >&2; exit 2 ;;
    esac
done
readonly size_mib=128 load_cpu=0 backend_cpu=1

fail() { printf 'compare: %s\n' "$*" >&2; exit 1; }
target=${CARGO_TARGET_DIR:-target}

find_qsd() {
    local cache=${MIDFLIGHT_E2E_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/midflight-e2e}
    if [[ -n ${QSD:-} ]]; then
        printf '%s\n' "$QSD"
    elif [[ -x $cache/current/bin/qemu-storage-daemon ]]; then
        printf '%s\n' "$cache/current/bin/qemu-storage-daemon"
    else
        command -v qemu-storage-daemon || fail 'no qemu-storage-daemon: run tests/e2e/prepare, or set QSD'
    fi
}

# Work of others on the machine waits for ours, where we may say so. Without it
# a wakeup takes milliseconds on a busy machine.
first=(chrt --rr 1)
"${first[@]}" true 2>/dev/null || first=()
(($(nproc) >= 2)) || fail 'two CPUs are needed, one for the load and one for the back-end'
qsd=$(find_qsd)
if [[ -z ${MIDFLIGHT:-} || -z ${LOAD:-} ]]; then
    cargo build -q --release --bin midflight --example load
fi
midflight=${MIDFLIGHT:-$target/release/midflight}
load=${LOAD:-$target/release/examples/load}
aio=${QSD_AIO:-io_uring}
qsd_thread=${QSD_THREAD:-iothread}

mkdir -p "$target"
ext4_dir=${EXT4_DIR:-$target} tmpfs_dir=${TMPFS_DIR:-/dev/shm}
declare -A pids
scratch=() sockets=$(mktemp -d)
finish() {
    local pid
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait || true
    rm -rf "$sockets" "${scratch[@]}"
}
trap finish EXIT

fs_type() { stat -f -c %T "$1"; } # ext4 calls itself ext2/ext3 here

start() { # PLACE DIR
    local place=$1 dir on=() thread=() direct=off
    dir=$(mktemp -d -p "$2" midflight-compare.XXXXXX)
    scratch+=("$dir")
    # Locks and caches apart: each has a file of its own, with equal content.
    "$load" --fill "$dir/midflight" --size-mib $size_mib
    "$load" --fill "$dir/qsd" --size-mib $size_mib
    on=("${first[@]}" taskset -c $backend_cpu)
    "${on[@]}" "$midflight" serve --socket-path "$sockets/$place.midflight" \
        --blk-file "$dir/midflight" --queue-size-max 256 2>"$sockets/log.midflight" &
    pids[$place.midflight]=$!
    [[ $aio != native ]] || direct=on
    [[ $qsd_thread == main ]] || thread=(--object iothread,id=t)
    "${on[@]}" "$qsd" "${thread[@]}" \
        --blockdev "driver=file,node-name=d,filename=$dir/qsd,aio=$aio,cache.direct=$direct" \
        --export "type=vhost-user-blk,id=e,node-name=d,writable=on,num-queues=1,addr.type=unix,addr.path=$sockets/$place.qsd${thread:+,iothread=t}" &
    pids[$place.qsd]=$!
    local who tries
    for who in midflight qsd; do
        for ((tries = 0; ; tries++)); do
            [[ ! -S $sockets/$place.$who ]] || break
            kill -0 "${pids[$place.$who]}" 2>/dev/null || fail "$who does not run: $(cat "$sockets/log.$who" 2>/dev/null)"
            ((tries < 100)) || fail "$who does not listen"
            sleep 0.1
        done
        # Reads every page once or more, and checks that data comes back right.
        "${first[@]}" taskset -c $load_cpu "$load" --socket "$sockets/$place.$who" --verify --time-ms 300 >/dev/null ||
            fail "$who on $place does not read what was written"
    done
    cat "$dir/midflight" "$dir/qsd" >/dev/null
}

# Numbers on standard input, in any order: lowest, median, highest.
spread() {
    sort -g | awk '{v[NR] = $1} END {print v[1], (v[int((NR + 1) / 2)] + v[int((NR + 2) / 2)]) / 2, v[NR]}'
}

value() { sed -E "s/.*\b$1=([0-9.]+).*/\1/" <<<"$2"; } # NAME LINE

point() { # PLACE DEPTH
    local place=$1 depth=$2 run who line other
    local -A iops=() cpu=() p50=()
    local r_iops='' r_cpu=''
    for ((run = 0; run < runs; run++)); do
        for who in midflight qsd; do
            line=$("${first[@]}" taskset -c $load_cpu "$load" --socket "$sockets/$place.$who" \
                --pid "${pids[$place.$who]}" --depth "$depth" --time-ms "$time_ms") || fail "$who failed"
            ((!details)) || printf '  %-10s %s\n' "$who" "$line" >&2
            iops[$who]+="$(value iops "$line")"$'\n'
            cpu[$who]+="$(value backend_ns "$line")"$'\n'
            p50[$who]+="$(value p50_us "$line")"$'\n'
            declare "now_$who=$(value iops "$line") $(value backend_ns "$line")"
        done
        other=$(awk -v a="$now_midflight" -v b="$now_qsd" 'BEGIN {split(a, m); split(b, q); print m[1] / q[1], m[2] / q[2]}')
        r_iops+=${other% *}$'\n' r_cpu+=${other#* }$'\n'
    done
    local m q
    m=$(spread <<<"${iops[midflight]%$'\n'}") q=$(spread <<<"${iops[qsd]%$'\n'}")
    row "$place" "$depth" IOPS "$m" "$q" "$(spread <<<"${r_iops%$'\n'}")" 0
    m=$(spread <<<"${cpu[midflight]%$'\n'}") q=$(spread <<<"${cpu[qsd]%$'\n'}")
    row "$place" "$depth" 'CPU ns/IO' "$m" "$q" "$(spread <<<"${r_cpu%$'\n'}")" 0
    m=$(spread <<<"${p50[midflight]%$'\n'}") q=$(spread <<<"${p50[qsd]%$'\n'}")
    row "$place" "$depth" 'p50 us' "$m" "$q" '' 1
}

row() { # PLACE DEPTH WHAT MIDFLIGHT QSD RATIOS DIGITS
    awk -v place="$1" -v depth="$2" -v what="$3" -v m="$4" -v q="$5" -v r="$6" -v d="$7" 'BEGIN {
        split(m, a); split(q, b); split(r, c)
        printf "%-6s %5s  %-9s  %9.*f  %9.*f", place, depth, what, d, a[2], d, b[2]
        if (r != "") printf "   %5.2f  (%.2f to %.2f)", c[2], c[1], c[3]
        printf "\n"
    }'
}

printf '%s\n' "$("$midflight" --version), $("$qsd" --version | head -n1)"
printf 'qemu-storage-daemon with aio=%s, %s; kernel %s; %s runs of %s ms, medians\n\n' \
    "$aio" "$qsd_thread" "$(uname -r)" "$runs" "$time_ms"
printf '%-6s %5s  %-9s  %9s  %9s   %s\n' file depth what midflight qsd 'ratio (min to max of the runs)'
for place in $places; do
    dir=${place}_dir
    case $place:$(fs_type "${!dir}") in
        tmpfs:tmpfs | ext4:ext2/ext3) ;;
        *) printf '%-6s SKIPPED: %s is on %s\n' "$place" "${!dir}" "$(fs_type "${!dir}")"; continue ;;
    esac
    start "$place" "${!dir}"
    for depth in $depths; do
        point "$place" "$depth"
    done
done
