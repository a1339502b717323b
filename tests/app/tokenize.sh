# fovea tokenize: ids and pieces, there and back.
. "$(dirname "$(realpath "$0")")/common.bash"
need_model "$smollm"
need_model "$gemma"
call="$fovea tokenize -m $smollm"

expect text 0 '' $call -p 'Hello wörld 🙂' --json
holds ids '[type(i) for i in j["ids"]] == [int] * len(j["ids"]) and len(j["pieces"]) == len(j["ids"]) and set(j) == {"ids", "pieces"}'
holds pieces_join '"".join(j["pieces"]) == "Hello wörld 🙂"'
ids=$(python3 -c 'import json; print(*json.load(open("out"))["ids"], sep=",")')
expect back 0 '' $call --ids "$ids"
[ "$(cat out)" = 'Hello wörld 🙂' ] || fail back "$(cat out)"
[ "$(wc -c < out)" -eq 17 ] || fail nothing_added "$(wc -c < out) bytes"
printf 'Two\nlines ' > text
expect file 0 '' $call -f text --json
holds file_byte_for_byte '"".join(j["pieces"]) == "Two\nlines "'
expect part_of_character 0 '' $call -p '𒀀' --json
holds parts_show_as_bytes 'len(j["ids"]) > 1 and all(p.startswith("<0x") for p in j["pieces"] if "\ufffd" in p or len(p) == 6)'
expect plain 0 '' $call -p '<|im_end|>' --json
holds special_text_is_plain 'len(j["ids"]) > 1'
expect special 0 '' $call -p '<|im_end|>' --special --json
holds special_is_one_id 'len(j["ids"]) == 1'
expect begin 0 '' "$fovea" tokenize -m "$gemma" -p a --bos --json
holds begin_first 'j["ids"][0] == 2 and len(j["ids"]) == 2'
expect no_begin 0 '' "$fovea" tokenize -m "$gemma" -p a --json
holds no_begin_by_itself 'len(j["ids"]) == 1'
expect empty 0 '' $call -p '' --json
holds empty_is_empty 'j["ids"] == []'
expect table 0 '' $call -p 'Hello'

expect nothing 2 'expected one of' $call
expect two_sources 2 'expected one of' $call -p a --ids 1
expect no_model 2 'is missing' "$fovea" tokenize -p a
expect bad_ids 2 'ids' $call --ids 1,x
expect ids_out_of_range 2 'vocabulary' $call --ids 99999999
expect no_such_file 1 'cannot be opened' $call -f none
expect no_such_model 1 'cannot be opened' "$fovea" tokenize -m none.gguf -p a
printf 'ab\xffcd' > bytes
expect not_utf8 1 'byte 2' $call -f bytes
head -c 100000 "$smollm" > cut.gguf
expect cut_model 1 'cut.gguf' "$fovea" tokenize -m cut.gguf -p a
: > empty.gguf
expect empty_model 1 'empty.gguf' "$fovea" tokenize -m empty.gguf -p a
expect text_as_model 1 'LICENSE' "$fovea" tokenize -m "$source_dir/LICENSE" -p a
