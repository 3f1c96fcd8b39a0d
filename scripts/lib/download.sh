# shellcheck shell=bash
# Downloads that can be interrupted. Sourced by scripts/download_*.sh, which set `program`.
#
# A file is written as NAME.part beside its place, checked whole, then renamed: under its own name
# it is complete. NAME.part.source remembers what was being fetched (address, size, ETag or date),
# so that a part of something else is not continued.

say() { printf '%s: %s\n' "$program" "$*"; }

die() {
  printf '%s: error: %s\n' "$program" "$*" >&2
  exit 2
}

need() { # TOOL...
  local tool
  for tool in "$@"; do
    command -v "$tool" > /dev/null ||
      die "$tool is missing. Debian and Ubuntu: apt-get install $tool"
  done
}

# Makes a directory, sets `output` to it and keeps other downloads out of it until we end. The lock
# is on the directory itself, so nothing is left behind; curl inherits it and keeps it.
open_output() { # DIR
  mkdir -p "$1" 2> /dev/null || die "cannot make the directory $1. Choose another with --output."
  [[ -w $1 ]] || die "cannot write into $1. Choose another with --output."
  output=$(cd "$1" && pwd -P)
  exec 9< "$output"
  ! command -v flock > /dev/null || flock --nonblock 9 ||
    die "another download is writing into $output. Wait for it, or choose another --output."
}

megabytes() { awk -v bytes="$1" 'BEGIN { printf "%.1f MB", bytes / 1e6 }'; }

size_of() { if [[ -e $1 ]]; then stat -c %s "$1"; else echo 0; fi; }

check_space() { # BYTES WHAT
  local free
  free=$(($(df -Pk "$output" | awk 'NR == 2 { print $4 }') * 1024))
  ((free >= $1)) ||
    die "$2 needs $(megabytes "$1"), and $output has $(megabytes "$free") free. Free some space," \
      "or choose another disk with --output."
}

# Asks for a file's headers and sets `status`, `size` (empty if not told) and `version`.
ask() { # URL
  local headers code=0
  headers=$(curl --silent --show-error --head --location --connect-timeout 30 --retry 3 "$1" \
    2>&1) || code=$?
  ((code == 0)) || unreachable "$1" "$code" "${headers##*$'\n'}"
  # After redirections the last answer counts: each starts with an HTTP line.
  headers=$(tr -d '\r' <<< "$headers" | awk '/^HTTP\// { text = "" } { text = text $0 "\n" }
    END { printf "%s", text }')
  status=$(awk 'NR == 1 { print $2 }' <<< "$headers")
  size=$(header content-length)
  version=$(header etag)
  [[ $version ]] || version=$(header last-modified)
}

# One of the `headers` that `ask` received.
header() { # NAME
  awk -F ':' -v name="$1" 'tolower($1) == name { sub(/^[^:]*: */, ""); print; exit }' \
    <<< "$headers"
}

unreachable() { # URL CURL_STATUS MESSAGE
  die "cannot reach $1: $3 (curl status $2). Check the connection and the proxy settings, then" \
    "run the same command again: it continues where it stopped."
}

# Downloads a file into `output`.
#
# With an MD5 sum, the file must have it; otherwise the command given must accept the file.
fetch() { # URL NAME MD5|"" CHECK_COMMAND...
  local url=$1 name=$2 md5=$3 target part source status size version have here='' code
  shift 3
  target=$output/$name part=$output/$name.part
  if [[ -e $target ]]; then
    say "$name is here already"
    return
  fi
  ask "$url"
  case $status in
    200) ;;
    405 | 501) size='' ;; # no HEAD requests here: the download itself will tell
    404) die "the server has no $url (404). Was it moved? Another address: --base_url" ;;
    *) die "the server answers $status for $url. Try again later, or another address with" \
      "--base_url" ;;
  esac

  source="$url $size $version"
  have=$(size_of "$part")
  [[ ! -e $part || -e $part.source ]] ||
    die "$part is in the way: no download of ours left it. Move it away, or choose another" \
      "--output."
  if ((have)) && [[ $(cat "$part.source" 2> /dev/null) != "$source" || $have -gt ${size:-$have} ]]
  then
    say "$name.part belongs to another file or version; starting over"
    rm -f "$part"
    have=0
  fi
  if [[ $size ]]; then
    check_space "$((size - have))" "$name"
    ((have == 0)) || here=", of which $(megabytes "$have") are here"
    say "$name: $(megabytes "$size")$here"
  else
    say "$name: the server does not tell its size, so the disk space is not checked"
  fi
  printf '%s\n' "$source" > "$part.source"
  if [[ -z $size || $have -lt $size ]]; then
    transfer "$url" "$part"
  fi

  have=$(size_of "$part")
  [[ -z $size || $have -eq $size ]] ||
    die "$name ended after $have of $size bytes. Run the same command again to continue."
  if [[ $md5 ]]; then
    code=$(md5sum < "$part" | cut -d ' ' -f 1)
    [[ $code == "$md5" ]] || refuse "has the MD5 sum $code, but $md5 is published"
  else
    "$@" "$part" > /dev/null 2>&1 || refuse "is damaged ($1 does not accept it)"
  fi
  mv "$part" "$target"
  rm -f "$part.source"
}

refuse() { # REASON; of fetch
  rm -f "$part" "$part.source"
  die "$name from $url $1. The download was removed; run the same command again."
}

transfer() { # URL PART
  local code=0 show=(--silent --show-error)
  [[ ! -t 2 ]] || show=(--progress-bar)
  curl "${show[@]}" --fail --location --connect-timeout 30 --speed-limit 1 --speed-time 60 \
    --retry 5 --retry-connrefused --continue-at - --output "$2" "$1" || code=$?
  case $code in
    0) ;;
    33) # The server cannot continue a download.
      say "the server cannot continue a download; starting over"
      rm -f "$2"
      curl "${show[@]}" --fail --location --connect-timeout 30 --speed-limit 1 --speed-time 60 \
        --output "$2" "$1" || unreachable "$1" "$?" "interrupted after $(size_of "$2") bytes"
      ;;
    23) die "cannot write $2: is the disk full? Free some space and run the same command again." ;;
    *) unreachable "$1" "$code" "interrupted after $(size_of "$2") bytes" ;;
  esac
}

# Prints the MD5 sum in a checksum file, "SUM  NAME" or "MD5 (NAME) = SUM"; nothing without a file.
published_md5() { # URL
  local headers status size version text code=0
  ask "$1"
  [[ $status != 404 ]] || return 0
  text=$(curl --silent --show-error --fail --location --connect-timeout 30 --retry 3 "$1" 2>&1) ||
    code=$?
  ((code == 0)) || unreachable "$1" "$code" "${text##*$'\n'}"
  grep -oiE '(^|[^0-9a-f])[0-9a-f]{32}($|[^0-9a-f])' <<< "$text" | grep -oiE '[0-9a-f]{32}' |
    head -n 1 | tr 'A-F' 'a-f' || die "$1 holds no MD5 sum."
}
