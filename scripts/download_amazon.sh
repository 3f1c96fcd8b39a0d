#!/usr/bin/env bash
# Downloads the Amazon product reviews of 2014, reviews and metadata of one category.
set -euo pipefail
program=download_amazon.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/lib/download.sh
source "$root/scripts/lib/download.sh"

categories=(
  Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books CDs_and_Vinyl
  Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics
  Grocery_and_Gourmet_Food Health_and_Personal_Care Home_and_Kitchen Kindle_Store Movies_and_TV
  Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies Sports_and_Outdoors
  Tools_and_Home_Improvement Toys_and_Games Video_Games
)
# The address of NVIDIA's scripts/download_amazon_books_2014.sh.
base_url=${LOOKBACK_AMAZON_URL:-http://snap.stanford.edu/data/amazon/productGraph/categoryFiles}

usage() {
  cat << END
usage: scripts/download_amazon.sh [CATEGORY] [--output DIR] [--base_url URL]

Downloads reviews_CATEGORY.json.gz and meta_CATEGORY.json.gz (CATEGORY: Books if left out) into DIR
(data/amazon_CATEGORY of this checkout if left out); \`python -m workflows run --dataset amazon\`
reads them as they are. An interrupted download continues when the command is given again; files
that are there are left alone. No checksums are published, so the files are checked with gzip -t.
LOOKBACK_AMAZON_URL is the same as --base_url.

categories: ${categories[*]}
END
}

category='' output=''
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --output | --base_url)
      [[ -n ${2:-} ]] || die "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    -*) die "unknown option $1; allowed: --output DIR, --base_url URL" ;;
    *)
      [[ -z $category ]] || die "one category at a time; got $category and $1"
      category=$1
      ;;
  esac
  shift
done
category=${category:-Books}
[[ " ${categories[*]} " == *" $category "* ]] ||
  die "unknown category $category; allowed: ${categories[*]}"
need curl gzip awk

open_output "${output:-$root/data/amazon_$category}"
for name in "meta_$category.json.gz" "reviews_$category.json.gz"; do
  fetch "${base_url%/}/$name" "$name" "" gzip -tq
done
say "done: $output"
