# Writes the bytes of INPUT into OUTPUT as a C array NAME with NAME_bytes, which stand in HEADER.
#   cmake -DINPUT=.. -DOUTPUT=.. -DNAME=.. -DHEADER=.. -P embed.cmake
file(READ ${INPUT} bytes HEX)
string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
file(WRITE ${OUTPUT} "#include \"${HEADER}\"\n\nconst char ${NAME}[] = {\n${bytes}0};\n\nconst size_t ${NAME}_bytes = sizeof ${NAME} - 1;\n")
