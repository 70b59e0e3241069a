# Turns the page's files into C++ text constants.
#
# Included, it gives `glassformer_embed(<variable>)`: adds the build step and puts the path of the generated .cpp into the
# variable. Run as a script (`cmake -DASSETS=<folder> -DOUTPUT=<file> -P embed.cmake`), it writes that file.
if(CMAKE_SCRIPT_MODE_FILE STREQUAL CMAKE_CURRENT_LIST_FILE)
  set(text "// Written by view/embed.cmake from view/assets.\n#include \"glassformer/view/page_assets.h\"\n\n")
  string(APPEND text "namespace glassformer {\n\n")
  foreach(pair "kPageHtml|page.html" "kPageCss|page.css" "kPartsJs|parts.js" "kPageJs|page.js")
    string(REPLACE "|" ";" pair "${pair}")
    list(GET pair 0 constant)
    list(GET pair 1 name)
    file(READ "${ASSETS}/${name}" content)
    string(APPEND text "const std::string_view ${constant} = R\"_asset_(${content})_asset_\";\n\n")
  endforeach()
  string(APPEND text "}  // namespace glassformer\n")
  file(WRITE "${OUTPUT}" "${text}")
  return()
endif()

set(GLASSFORMER_EMBED_SCRIPT "${CMAKE_CURRENT_LIST_FILE}")
set(GLASSFORMER_ASSETS "${CMAKE_CURRENT_LIST_DIR}/assets")

function(glassformer_embed variable)
  set(output "${CMAKE_CURRENT_BINARY_DIR}/page_assets.cpp")
  add_custom_command(
    OUTPUT "${output}"
    COMMAND "${CMAKE_COMMAND}" "-DASSETS=${GLASSFORMER_ASSETS}" "-DOUTPUT=${output}" -P "${GLASSFORMER_EMBED_SCRIPT}"
    DEPENDS "${GLASSFORMER_ASSETS}/page.html" "${GLASSFORMER_ASSETS}/page.css" "${GLASSFORMER_ASSETS}/parts.js"
            "${GLASSFORMER_ASSETS}/page.js" "${GLASSFORMER_EMBED_SCRIPT}"
    COMMENT "Embedding the page's files"
    VERBATIM)
  set(${variable} "${output}" PARENT_SCOPE)
endfunction()
