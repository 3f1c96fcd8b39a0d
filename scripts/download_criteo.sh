#!/usr/bin/env bash
# Downloads days of Criteo's Terabyte click logs.
set -euo pipefail
program=download_criteo.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/lib/download.sh
source "$root/scripts/lib/download.sh"

last_day=23
fields=40
lines_looked_at=1000
# Criteo's own storage, which MLPerf's and Meta's DLRM scripts download from, too.
base_url=${LOOKBACK_CRITEO_URL:-https://storage.googleapis.com/criteo-cail-datasets}

usage() {
  cat << END
usage: scripts/download_criteo.sh --days FIRST[-LAST] [--output DIR] [--base_url URL] [--verify]

Downloads day_N.gz of Criteo's Terabyte click logs, N from FIRST to LAST (0 to $last_day; about 15 GB
a day), into DIR (data/criteo of this checkout if left out); \`python -m workflows run --dataset
criteo\` reads them as they are. The data has Criteo's terms of use. An interrupted download
continues when the command is given again; files that are there are left alone. Each file is tested
as it comes: gzip -t, and its first $lines_looked_at lines have $fields fields. No checksums are
published.

--verify downloads nothing: it tests the files of these days that are there, and that none is
missing. LOOKBACK_CRITEO_URL is the same as --base_url.
END
}

# Whether a packed file is whole and of the format. Also how `fetch` tests a download.
test_day() { # FILE
  gzip -t < "$1" || return
  local bad
  # `head` ends the reading, on which gzip ends with an error.
  bad=$({ gzip -dc < "$1" 2> /dev/null || true; } | head -n "$lines_looked_at" |
    awk -F '\t' -v fields="$fields" 'NF != fields || $1 !~ /^[01]$/ { print NR; exit }
      END { if (NR == 0) print 0 }')
  [[ -z $bad ]]
}

verify() { # FIRST LAST
  local day file bad=0
  for ((day = $1; day <= $2; day++)); do
    file=$output/day_$day.gz
    if [[ -e $file.part ]]; then
      say "day_$day.gz: not whole yet, $(megabytes "$(size_of "$file.part")") are here"
      bad=1
    elif [[ ! -e $file ]]; then
      say "day_$day.gz: missing"
      bad=1
    elif ! test_day "$file" 2> /dev/null; then
      say "day_$day.gz: damaged, or not $fields fields a line ($(megabytes "$(size_of "$file")"))"
      bad=1
    else
      say "day_$day.gz: whole ($(megabytes "$(size_of "$file")"))"
    fi
  done
  ((bad == 0)) || die "not all days are whole. Remove what is damaged, then run the same command" \
    "without --verify."
}

days='' output='' only_verify=''
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --days | --output | --base_url)
      [[ -n ${2:-} ]] || die "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    --verify) only_verify=1 ;;
    *) die "unknown argument $1; allowed: --days FIRST[-LAST], --output DIR, --base_url URL," \
      "--verify" ;;
  esac
  shift
done
[[ $days ]] || die "which days? --days FIRST[-LAST], from 0 to $last_day"
[[ $days =~ ^([0-9]{1,2})(-([0-9]{1,2}))?$ ]] ||
  die "--days: expected a day or a range such as 0-3, received $days"
first=$((10#${BASH_REMATCH[1]})) last=$((10#${BASH_REMATCH[3]:-${BASH_REMATCH[1]}}))
((first <= last && last <= last_day)) ||
  die "--days: expected FIRST-LAST within 0-$last_day, received $days"
need curl gzip awk

open_output "${output:-$root/data/criteo}"
if [[ $only_verify ]]; then
  verify "$first" "$last"
else
  for ((day = first; day <= last; day++)); do
    fetch "${base_url%/}/day_$day.gz" "day_$day.gz" "" test_day
  done
fi
say "done: $output"
